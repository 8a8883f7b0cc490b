"""Which numbers of a model a stage trains, and what it saves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from uae_jax.models import lora, sd3
from uae_jax.models.lora import LoRAConfig
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages import towers
from uae_jax.stages.towers import TowerConfig
from uae_jax.weights import projector
from uae_jax.weights import sd3 as sd3_weights
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.uae import Adapter

SIZES = ProjectorConfig(width=6, hidden=8, out=4)
SCALE = 2.0  # alpha / rank of the adapter below


@pytest.fixture
def model():
    """Two linear layers, "up" and "down"."""
    rng = np.random.default_rng(0)
    abstract = projector.ARCHITECTURE.abstract(SIZES)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), abstract)
    return Pretrained(projector.ARCHITECTURE, SIZES, params)


@pytest.fixture
def adapter():
    rng = np.random.default_rng(1)
    config = LoRAConfig(rank=3, alpha=3 * SCALE, targets=("down",))
    params = {"down": {"a": rng.normal(size=(8, 3)), "b": rng.normal(size=(3, 4))}}
    return Adapter(config, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(2).normal(size=(2, 3, 6)).astype(np.float32)


def output(tower, variables, x):
    return np.asarray(tower.module.apply(variables, x))


def plain(params, x, delta=0.0):
    """The same two layers in NumPy; `delta` is added to the second kernel."""
    from scipy.special import erf

    up, down = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params[name]) for name in ("up", "down"))
    hidden = x @ up["kernel"] + up["bias"]
    hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
    return hidden @ (down["kernel"] + delta) + down["bias"]


def product(adapter):
    return SCALE * np.asarray(adapter.params["down"]["a"], np.float64) @ np.asarray(adapter.params["down"]["b"])


def paths(tree):
    return set(traverse_util.flatten_dict(tree, sep="/"))


def test_full_trains_every_parameter_in_float32(model):
    half = Pretrained(model.architecture, model.config, jax.tree.map(lambda p: p.astype(jnp.bfloat16), model.params))
    tower, trainable, frozen = towers.start(half, TowerConfig(), dtype="bfloat16")
    assert paths(trainable) == {f"params/{layer}/{leaf}" for layer in ("up", "down") for leaf in ("kernel", "bias")}
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype("float32")}
    assert not jax.tree.leaves(frozen)
    assert tower.axes["params"]["up"]["kernel"] == ("embed", "mlp")
    saved, none = tower.finished(trainable, frozen)
    assert none is None
    assert paths(saved.params) == paths(model.params)


def test_buffers_are_not_trained():
    config = SD3Config(num_layers=2, num_heads=2, head_dim=8, context_dim=8, pooled_dim=8, pos_embed_max_size=4)
    model = Pretrained(
        sd3_weights.ARCHITECTURE,
        config,
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sd3_weights.ARCHITECTURE.abstract(config)),
    )
    _, trainable, frozen = towers.start(model, TowerConfig(), buffers=sd3.BUFFERS)
    assert paths(frozen) == {"params/pos_embed/table"}
    assert "params/pos_embed/proj/kernel" in paths(trainable)
    # The patch embedding is a convolution in the published layout, so PEFT could not store an adapter of it.
    tower, trainable, _ = towers.start(model, TowerConfig(mode="lora", rank=2), buffers=sd3.BUFFERS)
    adapted = {path.rsplit("/", 1)[0] for path in paths(trainable)}
    assert "lora/layers_0/attn/q" in adapted
    assert "lora/proj_out" in adapted
    assert not any("pos_embed" in path for path in adapted)
    assert paths(tower.axes) == paths(trainable)


def test_a_new_adapter_is_all_that_is_trained(model, x):
    tower, trainable, frozen = towers.start(model, TowerConfig(mode="lora", rank=2, targets=("up",)))
    assert paths(trainable) == {"lora/up/a", "lora/up/b"}
    np.testing.assert_allclose(output(tower, tower.variables(trainable, frozen), x), plain(model.params, x), rtol=1e-5)
    gradient = jax.grad(lambda t: tower.module.apply(tower.variables(t, frozen), x).sum())(trainable)
    assert paths(gradient) == paths(trainable)
    assert np.abs(gradient["lora"]["up"]["b"]).max() > 0
    assert np.abs(gradient["lora"]["up"]["a"]).max() == 0  # b is zero, so a has nowhere to go yet
    saved, own = tower.finished(trainable, frozen)
    assert own.config.rank == 2
    np.testing.assert_array_equal(saved.params["up"]["kernel"], model.params["up"]["kernel"])


def test_frozen_keeps_the_adapter_that_the_model_has(model, adapter, x):
    tower, trainable, frozen = towers.start(model, TowerConfig(mode="frozen"), adapter)
    assert trainable == {}
    wanted = plain(model.params, x, product(adapter))
    np.testing.assert_allclose(output(tower, tower.variables({}, frozen), x), wanted, rtol=1e-4)
    assert tower.finished({}, frozen)[1].config == adapter.config


def test_an_adapter_that_is_continued_keeps_its_start_as_the_reference(model, adapter, x):
    config = TowerConfig(mode="lora", rank=1, targets=("up",))  # neither counts: the adapter has its own
    tower, trainable, frozen = towers.start(model, config, adapter, keep_reference=True)
    assert paths(trainable) == {"lora/down/a", "lora/down/b"}
    trained = jax.tree.map(lambda leaf: leaf + 1, trainable)
    started = plain(model.params, x, product(adapter))
    np.testing.assert_allclose(output(tower, tower.reference(frozen), x), started, rtol=1e-4)
    # Without the adapter altogether it would be the model before the adapter was first trained.
    assert np.abs(plain(model.params, x) - started).max() > 0.1
    assert np.abs(output(tower, tower.variables(trained, frozen), x) - started).max() > 0.1
    assert tower.finished(trained, frozen)[1].config.alpha == adapter.config.alpha

    tower, _, frozen = towers.start(model, config, adapter)
    with pytest.raises(ValueError, match="keep_reference"):
        tower.reference(frozen)


def test_an_adapter_that_is_merged_gives_way_to_a_new_one(model, adapter, x):
    config = TowerConfig(mode="lora", rank=2, existing="merge")
    tower, trainable, frozen = towers.start(model, config, adapter)
    wanted = plain(model.params, x, product(adapter))
    for variables in (tower.variables(trainable, frozen), tower.reference(frozen)):
        np.testing.assert_allclose(output(tower, variables, x), wanted, rtol=1e-4)
    saved, own = tower.finished(trainable, frozen)
    assert own.config.rank == 2
    np.testing.assert_allclose(
        saved.params["down"]["kernel"], model.params["down"]["kernel"] + product(adapter), rtol=1e-5
    )


def test_full_merges_the_adapter_and_has_no_reference(model, adapter, x):
    tower, trainable, frozen = towers.start(model, TowerConfig(), adapter)
    wanted = plain(model.params, x, product(adapter))
    np.testing.assert_allclose(output(tower, tower.variables(trainable, frozen), x), wanted, rtol=1e-4)
    assert tower.finished(trainable, frozen)[1] is None
    with pytest.raises(ValueError, match="no reference"):
        tower.reference(frozen)


def test_an_adapter_is_not_merged_into_16_bits(model, adapter, x):
    # bfloat16 has 8 bits: what is below half a percent of a weight would be lost, silently and for good.
    config = TowerConfig(mode="lora", rank=2, existing="merge")
    with pytest.raises(
        ValueError, match=r"existing is 'merge' and weights are bfloat16, .*wanted 'continue', or float32"
    ):
        towers.start(model, config, adapter, dtype=jnp.bfloat16)
    towers.check_dtypes({"decoder": config}, "float32", "float32")
    with pytest.raises(ValueError, match=r"decoder\.existing is 'merge' and weights are float32 and bfloat16"):
        towers.check_dtypes({"decoder": config}, "float32", "bfloat16")
    # Weights that were kept in 16 bits are merged in float32 where they are computed with, or trained, in it.
    kept = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params))
    small = dataclasses.replace(adapter, params=jax.tree.map(lambda leaf: leaf * 0.03, adapter.params))
    for mode, tree in (("lora", 2), ("full", 1)):
        params = towers.start(kept, dataclasses.replace(config, mode=mode), small)[tree]["params"]
        added = params["down"]["kernel"] - kept.params["down"]["kernel"].astype(jnp.float32)
        np.testing.assert_allclose(added, product(small), atol=1e-6)


def test_patterns_part_a_model(model):
    config = TowerConfig(mode="lora", rank=2, full=("up/.*",))
    tower, trainable, frozen = towers.start(model, config)
    assert paths(trainable) == {"params/up/kernel", "params/up/bias", "lora/down/a", "lora/down/b"}
    assert paths(frozen) == {"params/down/kernel", "params/down/bias"}
    assert paths(tower.axes) == paths(trainable)
    _, trainable, _ = towers.start(model, TowerConfig(frozen=(".*/bias", "up/.*")))
    assert paths(trainable) == {"params/down/kernel"}


def test_misnamed_patterns_are_refused(model):
    with pytest.raises(ValueError, match=r"frozen: pattern 'vision/\.\*' names no parameter; there are down/bias"):
        towers.start(model, TowerConfig(frozen=("vision/.*",)))
    with pytest.raises(ValueError, match="LoRA target 'q' names no linear layer"):
        towers.start(model, TowerConfig(mode="lora", targets=("q",)))
    with pytest.raises(ValueError, match="wanted mode 'lora' or none"):
        TowerConfig(mode="frozen", full=("up/.*",))


def test_everything_lands_in_its_shards(model, adapter):
    mesh = make_mesh(fsdp=2, tensor=4)
    start = functools.partial(towers.start, model, dtype="float32", mesh=mesh)
    _, trainable, _ = start(TowerConfig(mode="lora", targets=("up",), rank=2))
    # up's kernel is [embed, mlp]: a [embed, R] splits with its rows, b [R, mlp] with its columns.
    assert trainable["lora"]["up"]["a"].sharding.spec == jax.P(("fsdp",), None)
    assert trainable["lora"]["up"]["b"].sharding.spec == jax.P(None, ("tensor",))
    _, _, frozen = start(TowerConfig(mode="frozen"), adapter)
    assert frozen["lora"]["down"]["a"].sharding.spec == jax.P(("tensor",), None)
    merged = lora.merge(model.params, adapter.params, adapter.config)
    _, trainable, _ = start(TowerConfig(), adapter)
    np.testing.assert_allclose(trainable["params"]["down"]["kernel"], merged["down"]["kernel"], rtol=1e-6)
    assert trainable["params"]["down"]["kernel"].sharding.spec == jax.P(("tensor",), ("fsdp",))
