"""Adapters: an own tree, applied to activations, that can be merged, left out, trained and sharded."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.weights import toy
from uae_jax.models import lora
from uae_jax.models.layers import Linear
from uae_jax.models.lora import LoRAConfig
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh

CONFIG = toy.ToyConfig()
PARAMS = toy.params(CONFIG)
IDS, IMAGE = toy.inputs(CONFIG)
ALL = LoRAConfig(rank=2, alpha=5, targets=(r"layers/.*", "head"))


def noisy(config=ALL, seed=1, dtype=jnp.float32):
    """An adapter that is past its first step: `b` is not zero."""
    adapter = lora.init(jax.random.key(0), PARAMS, config, dtype)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, x.dtype), adapter)


def run(params, adapter=None, config=ALL):
    return toy.run(CONFIG, params, IDS, IMAGE, **lora.collection(adapter, config))


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def error(got, wanted):
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


# Making one.


def test_a_new_adapter_changes_nothing_at_all():
    adapter = lora.init(jax.random.key(0), PARAMS, ALL)
    np.testing.assert_array_equal(run(PARAMS, adapter), run(PARAMS))
    assert all(not leaf.any() for path, leaf in flat(adapter).items() if path.endswith("/b"))


def test_shapes_follow_the_kernels():
    shapes = {path: leaf.shape for path, leaf in flat(lora.init(jax.random.key(0), PARAMS, ALL)).items()}
    assert shapes == {
        "layers/qkv/a": (3, 8, 2),
        "layers/qkv/b": (3, 2, 3, 8),  # a fused layer keeps its output axes
        "layers/up/a": (3, 8, 2),
        "layers/up/b": (3, 2, 12),
        "layers/down/a": (3, 12, 2),
        "layers/down/b": (3, 2, 8),
        "head/a": (8, 2),
        "head/b": (2, 6),
    }
    assert lora.init(jax.random.key(0), toy.ARCHITECTURE.abstract(CONFIG), ALL)["head"]["a"].shape == (8, 2)


def test_a_is_gaussian_of_deviation_one_over_rank():
    # Kaiming's rule, PEFT's default, would give 1 / sqrt(3 * 1000) = 0.018, and 1 / sqrt(rank) 0.5.
    params = {"up": {"kernel": jnp.zeros((1000, 3))}}
    a = np.asarray(lora.init(jax.random.key(0), params, LoRAConfig(rank=4))["up"]["a"])
    assert a.std() == pytest.approx(0.25, rel=0.03) and abs(a.mean()) < 0.02
    assert (np.abs(a) > 0.5).mean() == pytest.approx(0.0455, abs=0.012)  # beyond two deviations, if gaussian


def test_every_layer_has_noise_of_its_own_and_a_key_gives_it_again():
    one, two = (lora.init(jax.random.key(0), PARAMS, ALL) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = lora.init(jax.random.key(1), PARAMS, ALL)
    leaves = [leaf for path, leaf in flat(one).items() if path.endswith("/a")]
    layers = [x for leaf in leaves for x in (leaf if leaf.ndim == 3 else [leaf])]
    assert len({x.tobytes() for x in map(np.asarray, layers)}) == len(layers) == 10
    assert not np.array_equal(other["head"]["a"], one["head"]["a"])


def test_only_targets_are_adapted():
    config = LoRAConfig(rank=2, targets=("layers/(up|down)",))
    assert lora.target_paths(PARAMS, config) == ["layers/down", "layers/up"]
    assert set(flat(lora.init(jax.random.key(0), PARAMS, config))) == {
        f"layers/{name}/{part}" for name in ("up", "down") for part in "ab"
    }
    # The embedding and the norm are no linear layers; a pattern must match a whole path.
    assert lora.target_paths(PARAMS, LoRAConfig()) == ["head", "layers/down", "layers/qkv", "layers/up", "patch"]


@pytest.mark.parametrize("target", ["up", "layers/u", "embed", "layers/norm", "layers/up/kernel"])
def test_unknown_targets_are_refused_with_the_names_there_are(target):
    message = f"LoRA target {target!r} names no linear layer; there are head, layers/down, layers/qkv, layers/up, patch"
    with pytest.raises(ValueError, match=re.escape(message)):
        lora.init(jax.random.key(0), PARAMS, LoRAConfig(targets=("head", target)))


# Applying it.


def test_linear_adds_its_definition():
    # y = x W + alpha / R (x A) B + b, by hand: alpha / R is 5 / 2.
    x, params, adapter = jnp.ones((1, 8)), PARAMS["head"], noisy()["head"]
    scaled = lora.collection({"head": adapter}, ALL)["lora"]["head"]
    got = Linear(6).apply({"params": params, "lora": scaled}, x)
    w, bias, a, b = (np.asarray(p, np.float64) for p in (params["kernel"], params["bias"], adapter["a"], adapter["b"]))
    np.testing.assert_allclose(got[0], np.ones(8) @ w + 2.5 * (np.ones(8) @ a) @ b + bias, rtol=1e-5, atol=1e-6)


def test_applied_equals_merged_and_unmerging_undoes_it():
    adapter = noisy()
    merged = lora.merge(PARAMS, adapter, ALL)
    assert error(run(PARAMS, adapter), run(merged)) < 1e-6
    assert error(run(merged), run(PARAMS)) > 0.01
    back = lora.unmerge(merged, adapter, ALL)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), back, PARAMS)


def test_merging_leaves_all_else_alone():
    config = LoRAConfig(rank=2, alpha=2, targets=("layers/up",))
    merged, before = flat(lora.merge(PARAMS, noisy(config), config)), flat(PARAMS)
    changed = {path for path in before if not np.array_equal(before[path], merged[path])}
    assert changed == {"layers/up/kernel"}


def test_merging_into_half_precision_rounds_once():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    merged = lora.merge(half, noisy(), ALL)["head"]["kernel"]
    a, b = (np.asarray(noisy()["head"][part], np.float64) for part in "ab")
    exact = np.asarray(half["head"]["kernel"], np.float64) + 2.5 * a @ b
    assert merged.dtype == jnp.bfloat16
    # One rounding is within half a spacing, 2^-8; products or sums in bfloat16 would add roundings of their own.
    np.testing.assert_allclose(np.asarray(merged, np.float64), exact, rtol=2**-8 * 1.001)


def test_adapters_that_do_not_fit_are_refused():
    adapter = noisy()
    adapter["head"]["b"] = jnp.zeros((2, 7))
    with pytest.raises(ValueError, match=re.escape("adapter at head is for a kernel of [8, 7], got kernel [8, 6]")):
        lora.merge(PARAMS, adapter, ALL)
    with pytest.raises(ValueError, match=r"adapter at tail is for a kernel of .* got no such layer"):
        lora.merge(PARAMS, {"tail": noisy()["head"]}, ALL)


def test_no_adapter_is_no_collection():
    assert lora.collection(None, None) == {}
    assert LoRAConfig(rank=32, alpha=64.0).scale == 2.0


def test_the_base_is_neither_copied_nor_changed():
    # W + A B would be a sum with the shape of a kernel; the adapter goes through activations of rank 2 instead.
    adapter = noisy()
    kernels = {leaf.shape[-2:] if leaf.ndim == 3 else leaf.shape for leaf in (PARAMS["head"]["kernel"],)}
    kernels |= {PARAMS["layers"][name]["kernel"].shape[1:] for name in ("qkv", "up", "down")}
    jaxpr = jax.make_jaxpr(lambda params, adapter: run(params, adapter))(PARAMS, adapter)
    sums = [eqn for eqn in equations(jaxpr.jaxpr) if eqn.primitive.name in ("add", "add_any", "sub")]
    assert sums and not kernels & {variable.aval.shape for eqn in sums for variable in eqn.outvars}
    merging = jax.make_jaxpr(lambda params, adapter: run(lora.merge(params, adapter, ALL)))(PARAMS, adapter)
    shapes = {v.aval.shape for eqn in equations(merging.jaxpr) for v in eqn.outvars if eqn.primitive.name == "add"}
    assert (8, 6) in shapes  # the search above would have found it


def equations(jaxpr):
    """All equations, those of inner programs too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# Training it.


@pytest.mark.slow
def test_gradients_reach_the_adapter_and_nothing_else():
    adapter = noisy()

    def loss(adapter):
        return jnp.sum(run(PARAMS, adapter) ** 2)

    grads = jax.grad(loss)(adapter)
    assert flat(grads).keys() == flat(adapter).keys()
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
    # By central differences, along the gradient: the slope is its length.
    length = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    step = 1e-3 / length
    up, down = (loss(jax.tree.map(lambda x, g, s=s: x + s * step * g, adapter, grads)) for s in (1, -1))
    assert float(up - down) / (2 * step * length) == pytest.approx(length, rel=0.01)


def test_a_new_adapter_can_learn():
    # With b = 0 only b has a gradient; with a = 0 as well nothing would ever move.
    adapter = lora.init(jax.random.key(0), PARAMS, ALL)
    grads = flat(jax.grad(lambda adapter: jnp.sum(run(PARAMS, adapter) ** 2))(adapter))
    for path, leaf in grads.items():
        assert bool(np.asarray(leaf).any()) == path.endswith("/b"), path


def test_the_adapter_keeps_its_dtype_on_a_half_precision_base():
    config = LoRAConfig(rank=2, targets=("head",))
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    adapter = lora.init(jax.random.key(0), half, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapter)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(lora.init(jax.random.key(0), half, config, jnp.bfloat16))} == {
        np.dtype(jnp.bfloat16)
    }


# Sharding it.


def test_axes_are_those_of_the_kernels_with_the_rank_whole():
    axes = lora.logical_axes(noisy(), toy.LOGICAL_AXES.tree(PARAMS))
    assert axes["head"] == {"a": ("embed", None), "b": (None, "vocab")}
    assert axes["layers"]["qkv"] == {"a": ("layers", "embed", None), "b": ("layers", None, None, "heads")}
    assert axes["layers"]["up"] == {"a": ("layers", "embed", None), "b": ("layers", None, "mlp")}
    assert axes["layers"]["down"] == {"a": ("layers", "mlp", None), "b": ("layers", None, "embed")}


def test_sharded_equals_one_device():
    adapter, mesh = noisy(), make_mesh(2, 2, 2)
    axes = toy.LOGICAL_AXES.tree(PARAMS)
    params = jax.device_put(PARAMS, sharding.shardings(PARAMS, axes, mesh))
    placed = jax.device_put(adapter, sharding.shardings(adapter, lora.logical_axes(adapter, axes), mesh))
    assert {shard.data.shape for shard in placed["layers"]["up"]["b"].addressable_shards} == {(3, 2, 6)}
    with jax.set_mesh(mesh):
        got = jax.jit(run)(params, placed)
    assert error(got, run(PARAMS, adapter)) < 1e-5
