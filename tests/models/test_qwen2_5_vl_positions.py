"""The host's plans for Qwen2.5-VL: patches into windows, image tokens into prompts, M-RoPE numbers."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from tests.models.qwen2_5_vl_cases import CONFIGS, GRIDS, IMAGE, PAD, SPECIAL, VIDEO, prompts
from uae_jax.models import qwen2_5_vl
from uae_jax.models.qwen2_5_vl import (
    TextConfig,
    VisionConfig,
    image_index,
    mrope_positions,
    pack_images,
    plan_images,
)
from uae_jax.weights.qwen2_5_vl import config_from_json

# Windows of 2x2 tokens, that is 4x4 patches.
VISION = VisionConfig(width=8, heads=1, patch_size=4, window_size=16, out_width=32)
CONFIG = config_from_json({**SPECIAL, **CONFIGS["tied"]})


def test_patches_of_one_image_by_hand():
    # 2 x 6 patches are one row of three tokens: a window of two tokens (8 patches) and one of the token left over.
    plan = plan_images([[(1, 2, 6)]], VISION)
    assert plan.position[0].tolist() == [
        *([0, 0], [0, 1], [1, 0], [1, 1]),
        *([0, 2], [0, 3], [1, 2], [1, 3]),
        *([0, 4], [0, 5], [1, 4], [1, 5]),
    ]
    assert plan.segment.tolist() == [[1] * 12]
    assert plan.window.tolist() == [[[*range(8), *[-1] * 8], [*range(8, 12), *[-1] * 12]]]
    assert plan.slot.tolist() == [[*range(8), 16, 17, 18, 19]]


@pytest.mark.parametrize("window_size", [16, 24, 20])
def test_plan_holds_the_windows_of_the_original(window_size):
    # 20 pixels are two and a half tokens: both round down.
    vision = VisionConfig(width=8, heads=1, patch_size=4, window_size=window_size)
    rng = np.random.default_rng(0)
    grids = [[(1, 2 * h, 2 * w) for h, w in rng.integers(1, 9, (count, 2))] for count in (3, 0, 1, 2)]
    plan = plan_images(grids, vision, pad_patches=600, pad_windows=60)
    for b, row in enumerate(grids):
        if not row:
            assert not plan.segment[b].any() and (plan.window[b] == -1).all()
            continue
        thw = torch.tensor(row)
        count = int(thw.prod(1).sum())
        np.testing.assert_array_equal(plan.position[b, :count], get_vision_position_ids(thw, 2))
        np.testing.assert_array_equal(plan.segment[b, :count], np.repeat(np.arange(len(row)) + 1, thw.prod(1)))
        assert not plan.segment[b, count:].any()
        order, bounds = get_vision_window_index(thw, 2, window_size, 4)
        patches = (order[:, None] * 4 + torch.arange(4)).flatten().numpy()
        wanted = [set(patches[start:end]) for start, end in itertools.pairwise(bounds)]
        got = [set(window[window >= 0]) for window in plan.window[b] if (window >= 0).any()]
        assert got == wanted
        np.testing.assert_array_equal(plan.window[b].reshape(-1)[plan.slot[b, :count]], np.arange(count))


@pytest.mark.parametrize(
    ("grids", "padding", "message"),
    [
        ([[], [(2, 4, 4)]], {}, "row 1, image 1: 2 frames; only still images"),
        ([[(1, 4, 4), (1, 4, 5)]], {}, "row 0, image 2: 4x5 patches, wanted multiples of 2"),
        ([[(1, 4, 4)], [(1, 4, 8)]], {"pad_patches": 28}, "row 1 has 32 patches, but pad_patches is 28"),
        ([[(1, 4, 8)]], {"pad_windows": 1}, "row 0 has 2 windows, but pad_windows is 1"),
        ([[(1, 4, 4)]], {"pad_patches": 18}, "pad_patches is 18, wanted a multiple of 4"),
    ],
)
def test_images_that_cannot_be_planned_are_refused(grids, padding, message):
    with pytest.raises(ValueError, match=message):
        plan_images(grids, VISION, **padding)


def test_pixels_that_do_not_fit_their_grids_are_refused():
    with pytest.raises(ValueError, match=r"row 0: patches are \(15, 96\), wanted \(16, 96\)"):
        pack_images([np.zeros((15, 96))], [[(1, 4, 4)]], VISION)


def test_image_index_counts_placeholders_in_each_row():
    tokens = np.array([[5, IMAGE, IMAGE, 6, IMAGE, PAD], [IMAGE, 7, 8, 9, 10, 11]])
    grids = [[(1, 2, 4), (1, 2, 2)], [(1, 2, 2)]]
    assert image_index(tokens, grids, CONFIG).tolist() == [[-1, 0, 1, -1, 2, -1], [0, -1, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([IMAGE, 5, 6], "row 1: 1 image placeholders, wanted 2 for its 1 images of grids"),
        ([IMAGE, IMAGE, IMAGE], "row 1: 3 image placeholders, wanted 2"),
        ([IMAGE, IMAGE, VIDEO], "row 1: video placeholders"),
    ],
)
def test_placeholders_that_do_not_fit_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        image_index(np.array([[5, 6, 7], row]), [[], [(1, 2, 4)]], CONFIG)


def test_scattered_placeholders_are_refused():
    with pytest.raises(ValueError, match="row 0: wanted 2 image placeholders side by side"):
        mrope_positions(np.array([[5, IMAGE, 6, IMAGE]]), [[(1, 2, 4)]], np.ones((1, 4), bool), CONFIG)


def test_mrope_by_hand():
    # Two words, an image of 1 x 3 tokens, two words, padding. The image starts at 2, is 3 wide: text goes on at 5.
    tokens = np.array([[7, 8, IMAGE, IMAGE, IMAGE, 9, 10, PAD, PAD]])
    valid = tokens != PAD
    wanted = {
        "ones": [[0, 1, 2, 2, 2, 5, 6, 1, 1], [0, 1, 2, 2, 2, 5, 6, 1, 1], [0, 1, 2, 3, 4, 5, 6, 1, 1]],
        "zeros": [[0, 1, 2, 2, 2, 5, 6, 0, 0], [0, 1, 2, 2, 2, 5, 6, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0, 0]],
        "running": [[0, 1, 2, 2, 2, 5, 6, 7, 8], [0, 1, 2, 2, 2, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8]],
    }
    for pad_positions, numbers in wanted.items():
        got, following = mrope_positions(tokens, [[(1, 2, 6)]], valid, CONFIG, pad_positions=pad_positions)
        assert got[:, 0].tolist() == numbers
        assert following.tolist() == [7]


def test_running_numbers_fall_below_zero_before_a_row():
    got, following = mrope_positions(
        np.array([[PAD, PAD, 5, 6]]), [[]], np.array([[0, 0, 1, 1]]), CONFIG, pad_positions="running"
    )
    assert got[:, 0].tolist() == [[-2, -1, 0, 1]] * 3
    assert following.tolist() == [2]


def test_empty_row_and_unknown_setting():
    got, following = mrope_positions(np.full((1, 3), PAD), [[]], np.zeros((1, 3), bool), CONFIG)
    assert got.tolist() == [[[1, 1, 1]]] * 3 and following.tolist() == [0]
    with pytest.raises(ValueError, match="pad_positions is 'two', wanted one of ones, zeros, running"):
        mrope_positions(np.full((1, 3), PAD), [[]], np.zeros((1, 3), bool), CONFIG, pad_positions="two")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("seed", range(3))
def test_mrope_equals_get_rope_index(side, seed):
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**SPECIAL, **CONFIGS["tied"])).model
    rng = np.random.default_rng(seed)
    grids = [[(1, 2 * h, 2 * w) for h, w in rng.integers(1, 7, (count, 2))] for count in (2, 0, 3, 1)]
    for images in (grids, GRIDS):
        batch = prompts(CONFIG, images, side=side, seed=seed)
        inputs = batch.for_torch()
        del inputs["pixel_values"]
        wanted, deltas = model.get_rope_index(**inputs)
        got, following = mrope_positions(batch.tokens, images, batch.valid, CONFIG, pad_positions="zeros")
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(following - batch.valid.sum(1), deltas[:, 0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VisionConfig(width=36, heads=2), "head width must be a multiple of 4"),
        (lambda: VisionConfig(window_size=27), "window of 27 pixels is smaller than one merged token"),
        (lambda: VisionConfig(activation="relu"), "activation is 'relu'"),
        (lambda: TextConfig(heads=16, kv_heads=3), "16 heads, wanted a multiple of its 3 kv heads"),
        (lambda: TextConfig(mrope_section=(16, 24, 25)), "sums to 65, wanted 64"),
        (
            lambda: qwen2_5_vl.Qwen2_5_VLConfig(vision=VisionConfig(out_width=64)),
            "out_width 64, wanted the text width 2048",
        ),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
