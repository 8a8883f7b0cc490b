"""Qwen2.5-VL against transformers: every layer of both towers, logits, greedy decoding."""

import dataclasses
import functools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import jax
import jax.numpy as jnp
from transformers.vision_utils import get_vision_window_index

from tests.models.qwen2_5_vl_cases import CONFIGS, GRIDS, PAD, jit, original, prompts
from tests.parity import Loaded, assert_close, convert, relative_error
from uae_jax.models.qwen2_5_vl import (
    Qwen2_5_VL,
    cache_mask,
    empty_cache,
    mrope_positions,
    qwen2_5_vl_3b,
    qwen2_5_vl_7b,
    small,
    tiny,
)
from uae_jax.models.runtime import Runtime
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights.pretrained import parameter_count
from uae_jax.weights.qwen2_5_vl import ARCHITECTURE


@dataclasses.dataclass
class Compiled(Loaded):
    """Ours, with programs that tests of equal shapes share."""

    def __post_init__(self):
        self._apply = jit(functools.partial(self.module.apply, mutable=["intermediates"]))
        self.prefill = jit(functools.partial(self.module.apply, method=prefill))
        self.step = jit(functools.partial(self.module.apply, method=step))

    def forward(self, *args):
        """Returns (logits, aux) and the sown values."""
        out, state = self._apply({"params": self.params}, *args)
        return out, state["intermediates"]


def prefill(module, tokens, positions, segments, images, index, cache):
    embeddings = module.embed(tokens, module.encode_images(images), index)
    hidden, cache = module.hidden_states(embeddings, positions, segments, cache)
    return module.logits(hidden), cache


def step(module, token, positions, valid, cache, place):
    mask = cache_mask(valid, place, 1)
    hidden, cache = module.hidden_states(module.embed(token), positions, None, cache, place, mask)
    return module.logits(hidden), cache


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Original and ours by the name of the configuration, each made once."""
    made = {}

    def get(name: str):
        if name not in made:
            model = original(name)
            ours = convert(model, tmp_path_factory.mktemp(name))
            made[name] = model, Compiled(ours.config, ours.params, ours.module, ours.architecture)
        return made[name]

    return get


def run_original(model, batch, **inputs) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    """Logits, and the output of every layer of both towers."""
    hidden: dict[str, list[torch.Tensor]] = {"vision": [], "language": [], "merged": []}
    parts = {"vision": model.model.visual.blocks, "language": model.model.language_model.layers}
    hooks = [
        layer.register_forward_hook(lambda module, args, out, key=key: hidden[key].append(out))
        for key, layers in parts.items()
        for layer in layers
    ]
    with torch.no_grad():
        inputs = batch.for_torch() | inputs
        logits = model(**inputs, use_cache=False).logits
        if "pixel_values" in inputs:
            features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            hidden["merged"] = features.pooler_output
    for hook in hooks:
        hook.remove()
    hidden["vision"] = hidden["vision"][: len(parts["vision"])]
    return logits, hidden


def unpermuted(hidden: torch.Tensor, grids, vision) -> np.ndarray:
    """The original's vision layers hold patches sorted by window; undoes that."""
    grids = torch.tensor([grid for row in grids for grid in row])
    order, _ = get_vision_window_index(grids, vision.merge_size, vision.window_size, vision.patch_size)
    blocks = hidden.reshape(-1, vision.patches_per_token, hidden.shape[-1])
    return blocks[torch.argsort(order)].reshape(hidden.shape).numpy()


def check_parity(model, ours: Compiled, batch, **padding: int) -> None:
    wanted, hidden = run_original(model, batch)
    tokens, positions, segments, images, index = batch.for_jax(ours.config, **padding)
    (logits, aux), sown = ours.forward(tokens, positions, segments, images, index)
    got = np.asarray(sown["language"]["layers"]["hidden"][0])
    assert len(got) == len(hidden["language"]) == ours.config.text.depth
    for i, layer in enumerate(hidden["language"]):
        assert_close(got[i][batch.valid], layer[batch.valid], f"language layer {i}")
    assert logits.dtype == jnp.float32
    assert_close(np.asarray(logits)[batch.valid], wanted[batch.valid], "logits")
    same = np.asarray(logits).argmax(-1) == wanted.numpy().argmax(-1)
    assert same[batch.valid].all()
    assert np.isfinite(np.asarray(aux["hidden"])).all(), "padding must not hold NaN"
    if images is None:
        return
    filled = images.segment > 0
    got = np.asarray(sown["vision"]["layers"]["hidden"][0])
    for i, layer in enumerate(hidden["vision"]):
        assert_close(got[i][filled], unpermuted(layer, batch.grids, ours.config.vision), f"vision layer {i}")
    merged = np.asarray(sown["vision"]["merged"][0])
    assert np.isfinite(merged).all()
    whole = filled[:, :: ours.config.vision.patches_per_token]
    assert_close(merged[whole], torch.cat(list(hidden["merged"])), "merged")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_layer_equals_the_original(pairs, name, side):
    model, ours = pairs(name)
    check_parity(model, ours, prompts(ours.config, side=side))


def test_more_room_for_patches_and_windows_changes_nothing(pairs):
    model, ours = pairs("tied")
    check_parity(model, ours, prompts(ours.config, seed=1), pad_patches=72, pad_windows=9)


@pytest.mark.parametrize("side", ["right", "left"])
def test_text_without_images_equals_the_original(pairs, side):
    # Left-padded rows: the original numbers the whole row, we start at its first token. Only differences count.
    model, ours = pairs("untied")
    check_parity(model, ours, prompts(ours.config, [[], [], []], side=side))


def test_parity_would_notice_wrong_positions(pairs):
    # The same inputs with image tokens numbered like text are far outside the tolerance of the tests above.
    model, ours = pairs("tied")
    batch = prompts(ours.config)
    wanted, _ = run_original(model, batch)
    tokens, positions, segments, images, index = batch.for_jax(ours.config)
    flat = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), positions.shape)
    (logits, _), _ = ours.forward(tokens, flat, segments, images, index)
    assert relative_error(np.asarray(logits)[batch.valid], wanted[batch.valid]) > 1e-3


@pytest.mark.parametrize(("grids", "pad_positions"), [(GRIDS, "zeros"), ([[], [], []], "running")])
def test_padding_behind_a_row_can_see_it_as_in_transformers(pairs, grids, pad_positions):
    # UAE's decoder reads hidden states at padding, so what padding sees and where it stands is part of the interface.
    model, ours = pairs("tied")
    batch = prompts(ours.config, grids)
    wanted, _ = run_original(model, batch)
    tokens, positions, valid, images, index = batch.for_jax(ours.config, pad_positions=pad_positions)
    assert not batch.valid.all()
    (logits, _), _ = ours.forward(tokens, positions, (np.ones_like(valid), valid), images, index)
    assert_close(logits, wanted, "logits, padding included")


def test_padding_with_ones_equals_the_original_given_those_positions(pairs):
    # transformers 4.50 gives padding position 1; the installed version takes positions as an argument.
    model, ours = pairs("tied")
    batch = prompts(ours.config)
    tokens, positions, valid, images, index = batch.for_jax(ours.config, pad_positions="ones")
    wanted, _ = run_original(model, batch, position_ids=torch.tensor(positions).long())
    (logits, _), _ = ours.forward(tokens, positions, (np.ones_like(valid), valid), images, index)
    assert_close(logits, wanted, "logits, padding included")


def decode(ours: Compiled, batch, new: np.ndarray | None, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Prefills the cache, then runs `count` tokens one by one: those of `new`, or greedily.

    Returns:
      The logits that each step's token was read from [B, count, V], and the tokens [B, count].
    """
    config = ours.config
    tokens, positions, segments, images, index = batch.for_jax(config)
    _, following = mrope_positions(tokens, batch.grids, batch.valid, config)
    rows, length = tokens.shape
    slots = np.concatenate([batch.valid, np.ones((rows, count), bool)], axis=1)
    cache = empty_cache(config.text, rows, length + count)
    variables = {"params": ours.params}
    logits, cache = ours.prefill(variables, tokens, positions, segments, images, index, cache)
    last = length - 1 - batch.valid[:, ::-1].argmax(1)
    logits = np.asarray(logits)[np.arange(rows), last]
    scores, chosen = [], []
    for i in range(count):
        scores.append(logits)
        token = logits.argmax(-1) if new is None else new[:, i]
        chosen.append(token)
        place = np.broadcast_to(following + i, (3, rows))[..., None].astype(np.int32)
        token = token[:, None].astype(np.int32)
        logits, cache = ours.step(variables, token, place, slots, cache, jnp.int32(length + i))
        logits = np.asarray(logits)[:, 0]
    assert ours.step._cache_size() == 1, "each step must reuse the same program"
    return np.stack(scores, axis=1), np.stack(chosen, axis=1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_decoding_token_by_token_equals_the_whole_forward(pairs, side):
    _, ours = pairs("tied")
    count, config = 4, ours.config
    batch = prompts(config, side=side)
    new = np.random.default_rng(5).integers(5, 90, (len(batch.tokens), count))
    got, _ = decode(ours, batch, new, count)
    # The reference has each row's tokens side by side, prompt and answer, and padding only behind them.
    tokens = np.full((len(new), batch.tokens.shape[1] + count), PAD)
    valid = np.zeros(tokens.shape, bool)
    for b in range(len(new)):
        row = np.concatenate([batch.tokens[b, batch.valid[b]], new[b]])
        tokens[b, : len(row)], valid[b, : len(row)] = row, True
    whole = type(batch)(tokens, valid, batch.grids, batch.pixels)
    (logits, _), _ = ours.forward(*whole.for_jax(config))
    for b, length in enumerate(batch.valid.sum(1)):
        wanted = np.asarray(logits)[b, length - 1 : length - 1 + count]
        assert_close(got[b], wanted, f"row {b}", tolerance=1e-5)


def test_greedy_decoding_equals_generate(pairs):
    model, ours = pairs("untied")
    batch = prompts(ours.config, side="left", seed=3)
    with torch.no_grad():
        wanted = model.generate(
            **batch.for_torch(), max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=None
        )
    _, got = decode(ours, batch, None, 6)
    np.testing.assert_array_equal(got, wanted[:, batch.tokens.shape[1] :].numpy())


def test_mask_without_cache_is_refused(pairs):
    _, ours = pairs("tied")
    with pytest.raises(ValueError, match="mask is over the slots of a cache"):
        ours(
            jnp.zeros((1, 2, 32)),
            jnp.zeros((3, 1, 2), jnp.int32),
            mask=jnp.ones((1, 1, 2, 2), bool),
            method="hidden_states",
        )


def test_cache_smaller_than_the_prompt_is_refused(pairs):
    _, ours = pairs("tied")
    cache = empty_cache(ours.config.text, 1, 1)
    with pytest.raises(ValueError, match="cache has 1 slots, wanted at least 2"):
        ours(jnp.zeros((1, 2, 32)), jnp.zeros((3, 1, 2), jnp.int32), cache=cache, method="hidden_states")


def test_features_without_index_are_refused(pairs):
    _, ours = pairs("tied")
    with pytest.raises(ValueError, match="go together"):
        ours(jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 4, 32)), method="embed")


def test_bfloat16_runtime_stays_near_the_original(pairs):
    # bfloat16 rounds at 4e-3 per operation; over 6 layers a few percent. A wrong term gives order 1.
    model, ours = pairs("tied")
    batch = prompts(ours.config)
    wanted, _ = run_original(model, batch)
    half = dataclasses.replace(ours, module=Qwen2_5_VL(ours.config, Runtime(dtype=jnp.bfloat16)))
    logits, aux = half(*batch.for_jax(ours.config))
    assert logits.dtype == jnp.float32 and aux["hidden"].dtype == jnp.bfloat16
    assert_close(np.asarray(logits)[batch.valid], wanted[batch.valid], tolerance=5e-2)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_bfloat16_head_sums_in_float32(pairs, name):
    # Sums rounded to bfloat16 would keep 8 bits each, an error of about 2e-3.
    _, ours = pairs(name)
    half = dataclasses.replace(ours, module=Qwen2_5_VL(ours.config, Runtime(dtype=jnp.bfloat16)))
    hidden = jax.random.normal(jax.random.key(0), (2, 5, ours.config.text.width), jnp.bfloat16)
    logits = half(hidden, method="logits")
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), ours.params)
    wanted = dataclasses.replace(ours, params=rounded)(hidden.astype(jnp.float32), method="logits")
    assert logits.dtype == jnp.float32
    assert_close(logits, wanted, tolerance=1e-6)


@pytest.mark.slow
def test_eight_devices_equal_one(pairs):
    _, ours = pairs("tied")
    batch = prompts(ours.config, [*GRIDS, [(1, 4, 4)]])
    inputs = batch.for_jax(ours.config)
    (wanted, _), _ = ours.forward(*inputs)
    mesh = make_mesh(2, 2, 2)
    placed = sharding.shardings(ours.params, ARCHITECTURE.logical_axes.tree(ours.params), mesh)
    params = jax.device_put(ours.params, placed)
    split = [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 1024]
    assert split and all(not leaf.sharding.is_fully_replicated for leaf in split)
    with jax.set_mesh(mesh):
        got, _ = Loaded(ours.config, params, ours.module, ARCHITECTURE)(*inputs)
    assert_close(np.asarray(got)[batch.valid], np.asarray(wanted)[batch.valid], tolerance=1e-5)


@pytest.mark.parametrize(
    ("config", "total", "vision"),
    # Published: 3B has 3,754,622,976 parameters, of which the tower 668,684,288. 7B is 8,292,166,656.
    [(qwen2_5_vl_3b(), 3_754_622_976, 668_684_288), (qwen2_5_vl_7b(), 8_292_166_656, 676_550_144)],
)
def test_full_size_parameter_count(config, total, vision):
    abstract = ARCHITECTURE.abstract(config)
    assert parameter_count(abstract) == total
    assert parameter_count(abstract["vision"]) == vision
    assert parameter_count(abstract["language"]) == total - vision


def test_full_size_forward_has_the_shapes_of_its_config():
    # 256x256 pixels are 18x18 patches, 81 tokens; in bfloat16, with rematerialisation, traced but not run.
    config = qwen2_5_vl_3b()
    batch = prompts(config, [[(1, 18, 18)]]).for_jax(config)
    module = Qwen2_5_VL(config, Runtime(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, remat="dots"))
    params = ARCHITECTURE.abstract(config, module.runtime)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    logits, aux = jax.eval_shape(module.apply, {"params": params}, *batch)
    assert (logits.shape, logits.dtype) == ((1, batch[0].shape[1], 151_936), jnp.float32)
    assert (aux["hidden"].shape, aux["hidden"].dtype) == ((1, batch[0].shape[1], 2048), jnp.bfloat16)


@pytest.mark.parametrize("config", [qwen2_5_vl_3b(), qwen2_5_vl_7b(), small(), tiny()])
def test_every_parameter_has_axes_of_its_rank(config):
    abstract = ARCHITECTURE.abstract(config)
    axes = ARCHITECTURE.logical_axes.tree(abstract)
    jax.tree.map(lambda leaf, names: pytest.fail(str(names)) if leaf.ndim != len(names) else None, abstract, axes)
    mesh = jax.sharding.AbstractMesh((1, 4, 2, 1), ("data", "fsdp", "tensor", "sequence"))
    for leaf, placed in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(sharding.shardings(abstract, axes, mesh)), strict=True
    ):
        if leaf.size > 10**7:  # what is large is split eight ways
            assert np.prod(placed.shard_shape(leaf.shape)) * 8 == leaf.size, leaf.shape
