"""Buckets by aspect, resizing and cropping, each against what a ruler and a pencil give."""

import numpy as np
import pytest
from PIL import Image

from uae_jax.data import transforms


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_buckets_have_about_the_area_and_sides_of_whole_multiples():
    # 64 * sqrt(2) = 90.5 -> 6 x 16 = 96; 64 / sqrt(2) = 45.3 -> 3 x 16 = 48. Rounding down would give (32, 80).
    assert transforms.bucket_shapes(64, (1.0, 2.0, 0.5), 16) == ((64, 64), (48, 96), (96, 48))
    shapes = transforms.bucket_shapes(512, (1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16), 64)
    assert all(side % 64 == 0 for shape in shapes for side in shape)
    assert all(0.8 < h * w / 512**2 < 1.25 for h, w in shapes)


def test_aspects_that_round_to_one_shape_share_it():
    assert transforms.bucket_shapes(64, (1.0, 1.01), 16) == ((64, 64),)
    assert transforms.bucket_shapes(16, (20.0,), 16) == ((16, 64),)  # 3.6 x 71.6: no side becomes 0


@pytest.mark.parametrize("settings", [(0, (1.0,), 16), (64, (), 16), (64, (0.0,), 16), (64, (1.0,), 0)])
def test_buckets_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="wanted"):
        transforms.bucket_shapes(*settings)


def test_the_nearest_bucket_is_nearest_in_logarithm():
    shapes = ((64, 64), (48, 96), (96, 48))
    # Between 1 and 2 the middle is sqrt(2) = 1.414; linear distance would still put 1.45 with 1.
    assert transforms.nearest_bucket((145, 100), shapes) == 1
    assert transforms.nearest_bucket((138, 100), shapes) == 0
    assert transforms.nearest_bucket((100, 145), shapes) == 2  # the same, standing
    assert transforms.nearest_bucket((10, 1000), shapes) == 2


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = noise(48, 32)
    got = transforms.resize_and_crop(Image.fromarray(pixels), (32, 48), "random", np.random.default_rng(0))
    np.testing.assert_array_equal(got, pixels)
    got[0, 0] = 0  # writable, and a copy


def test_what_stands_out_is_cut_off_evenly():
    # 96 x 64 to 64 x 64: nothing is scaled, 16 columns go on each side.
    pixels = noise(96, 64)
    got = transforms.resize_and_crop(Image.fromarray(pixels), (64, 64))
    np.testing.assert_array_equal(got, pixels[:, 16:80])


def test_the_shape_is_covered_and_nothing_is_distorted():
    # A disc of radius 40 in 200 x 100 becomes one of radius 16 in 40 x 40: squeezing would make an ellipse of it.
    y, x = np.mgrid[0:100, 0:200] + 0.5
    disc = (np.hypot(x - 100, y - 50) < 40).astype(np.uint8) * 255
    got = transforms.resize_and_crop(Image.fromarray(np.stack([disc] * 3, -1)), (40, 40))
    inside = got[..., 0] > 127
    assert inside.any(0).sum() == 32 and inside.any(1).sum() == 32


@pytest.mark.parametrize("size", [(3, 1000), (1000, 3), (17, 31), (4032, 3024), (63, 65)])
@pytest.mark.parametrize("shape", [(64, 64), (48, 96)])
def test_any_size_comes_out_in_the_shape(size, shape):
    image = Image.new("RGB", size, (7, 8, 9))
    for crop in ("center", "random"):
        got = transforms.resize_and_crop(image, shape, crop, np.random.default_rng(1))
        assert got.shape == (*shape, 3) and got.dtype == np.uint8
        assert (got == (7, 8, 9)).all()  # no border creeps in


def test_small_patterns_do_not_alias():
    # Pixels of 0 and 255 in turn: the mean is 127.5. Taking every fourth pixel would give 0 or 255 throughout.
    checks = (np.indices((128, 128)).sum(0) % 2 * 255).astype(np.uint8)
    got = transforms.resize_and_crop(Image.fromarray(np.stack([checks] * 3, -1)), (32, 32))
    assert np.abs(got.astype(int) - 127.5).max() < 8


def test_random_crops_follow_the_generator_and_reach_both_ends():
    pixels = np.zeros((16, 160, 3), np.uint8)
    pixels[...] = np.arange(160, dtype=np.uint8)[None, :, None]
    image = Image.fromarray(pixels)

    def left_edges(seed):
        rng = np.random.default_rng(seed)
        return [int(transforms.resize_and_crop(image, (16, 16), "random", rng)[8, 0, 0]) for _ in range(50)]

    assert left_edges(3) == left_edges(3) != left_edges(4)
    # 144 columns to spare: of 50 uniform draws the least lies below 20% but for (0.8)^50 = 1e-5.
    assert min(left_edges(3)) < 30 and max(left_edges(3)) > 114
    with pytest.raises(ValueError, match="rng"):
        transforms.resize_and_crop(image, (16, 16), "random")


def test_a_mirror_swaps_left_and_right_only():
    pixels = noise(5, 4)
    np.testing.assert_array_equal(transforms.mirror(pixels)[1, 0], pixels[1, 4])
    np.testing.assert_array_equal(transforms.mirror(transforms.mirror(pixels)), pixels)
