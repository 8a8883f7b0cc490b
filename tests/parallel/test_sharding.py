"""Logical names to mesh axes."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from uae_jax.parallel.mesh import make_mesh
from uae_jax.parallel.sharding import (
    DEFAULT_RULES,
    LogicalAxes,
    axis_rules,
    constrain,
    is_stacked,
    partition_spec,
    shardings,
)

MESH = make_mesh(2, 2, 2)  # data 2, fsdp 2, tensor 2, sequence 1


@pytest.mark.parametrize(
    ("shape", "names", "wanted"),
    [
        ((8, 6), ("embed", "mlp"), (("fsdp",), ("tensor",))),
        ((8, 6), (None, "mlp"), (None, ("tensor",))),
        ((8, 7), ("embed", "mlp"), (("fsdp",), None)),  # 7 heads on 2 devices stay whole
        ((8,), ("batch",), (("data", "fsdp"),)),
        ((2,), ("batch",), (("data",),)),  # halved by data, and 1 cannot be halved again
        ((1, 4), ("batch", "embed"), (None, ("fsdp",))),  # what the batch could not use is free
        ((8, 8), ("batch", "embed"), (("data", "fsdp"), None)),  # each mesh axis once
        ((8, 8), ("mlp", "heads"), (("tensor",), None)),
        ((12, 8), ("vocab", "embed"), (("tensor", "fsdp"), None)),
        ((10, 8), ("vocab", "embed"), (("tensor",), ("fsdp",))),  # 10 / 2 is odd, so fsdp is left to the width
        ((3, 8, 6), ("layers", "embed", "mlp"), (None, ("fsdp",), ("tensor",))),
        ((16,), ("length",), (None,)),  # sequence has one device here
        ((), (), ()),
    ],
)
def test_specs(shape, names, wanted):
    spec = partition_spec(shape, names, MESH)
    assert spec == PartitionSpec(*wanted)
    NamedSharding(MESH, spec).shard_shape(shape)  # JAX accepts it: divisible, and no axis twice


def test_sequence_axis():
    assert partition_spec((2, 8), ("batch", "length"), make_mesh(2, 1, 1, 4)) == PartitionSpec(("data",), ("sequence",))


def test_a_size_of_zero_and_an_absent_mesh_axis():
    rules = {"batch": ("replica", "data")}
    assert partition_spec((4,), ("batch",), MESH, rules) == PartitionSpec(("data",))


def test_wrong_names_and_ranks_are_refused():
    with pytest.raises(ValueError, match="logical axis 'embde' has no rule; known axes: batch, images, length"):
        partition_spec((8,), ("embde",), MESH)
    with pytest.raises(ValueError, match=re.escape("array of shape (8, 6) has 1 axis names ('embed',), wanted 2")):
        partition_spec((8, 6), ("embed",), MESH)


def test_rules_by_argument_and_by_context():
    mine = {"embed": ("tensor",)}
    assert partition_spec((8,), ("embed",), MESH, mine) == PartitionSpec(("tensor",))
    with axis_rules(mine):
        assert partition_spec((8,), ("embed",), MESH) == PartitionSpec(("tensor",))
        with pytest.raises(ValueError, match="'mlp' has no rule"):
            partition_spec((8,), ("mlp",), MESH)
    assert partition_spec((8,), ("embed",), MESH) == PartitionSpec(("fsdp",))
    with pytest.raises(RuntimeError), axis_rules(mine):
        raise RuntimeError
    assert partition_spec((8,), ("mlp",), MESH) == PartitionSpec(("tensor",))  # also after an error


def test_every_default_rule_names_axes_of_the_mesh():
    assert {axis for axes in DEFAULT_RULES.values() for axis in axes} <= set(MESH.axis_names)
    assert DEFAULT_RULES["layers"] == ()  # stacks are filled layer by layer


# Activations.


def test_constrain_is_nothing_outside_a_mesh():
    x = jnp.ones((8, 6))
    assert constrain(x, "batch", "act_mlp") is x
    jaxpr = jax.make_jaxpr(lambda x: constrain(x, "batch", "act_mlp"))(x)
    assert not jaxpr.eqns
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        assert constrain(x, "batch", "act_mlp") is x


def test_constrain_splits_inside_a_mesh():
    with jax.set_mesh(MESH):
        out = jax.jit(lambda x: constrain(x * 2, "batch", "act_mlp"))(jnp.ones((8, 6)))
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 3)}
    assert (out == 2).all()


def test_constrain_checks_names_inside_a_mesh():
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="wanted 2"):
        constrain(jnp.ones((8, 6)), "batch")
    with jax.set_mesh(MESH), pytest.raises(ValueError, match="'widht' has no rule"):
        constrain(jnp.ones((8, 6)), "batch", "widht")


# Parameters.

AXES = LogicalAxes(
    (r".*/kernel", ("embed", "mlp")),
    (r".*/bias", ("mlp",)),
    (r".*twice.*", (None,)),
)


def test_names_by_whole_path_with_a_leading_axis_in_stacks():
    assert AXES.of("up/kernel") == ("embed", "mlp")
    assert AXES.of("layers/up/kernel") == ("layers", "embed", "mlp")
    assert AXES.of("vision/layers_0/up/bias") == ("layers", "mlp")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("up/scale", "parameter up/scale matches 0 sharding patterns (none), wanted exactly one"),
        ("kernel", "parameter kernel matches 0 sharding patterns (none)"),  # no part of a path
        ("up/kernel_old", "matches 0"),
        ("twice/bias", r"parameter twice/bias matches 2 sharding patterns (.*/bias, .*twice.*), wanted exactly one"),
    ],
)
def test_exactly_one_pattern_must_match(path, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AXES.of(path)


@pytest.mark.parametrize(
    ("path", "stacked"),
    [
        ("layers/up/kernel", True),
        ("layers_2/up/kernel", True),
        ("vision/layers/norm/scale", True),
        ("last/up/kernel", False),
        ("norm_layers/scale", False),  # begins with, not holds
        ("up/kernel", False),
    ],
)
def test_stacks_are_known_by_name(path, stacked):
    assert is_stacked(path) == stacked


def test_trees():
    params = {"up": {"kernel": jnp.ones((8, 6)), "bias": jax.ShapeDtypeStruct((6,), jnp.float32)}}
    axes = AXES.tree(params)
    assert axes == {"up": {"kernel": ("embed", "mlp"), "bias": ("mlp",)}}
    placed = shardings(params, axes, MESH)
    assert placed["up"]["kernel"] == NamedSharding(MESH, PartitionSpec(("fsdp",), ("tensor",)))
    assert placed["up"]["bias"].shard_shape((6,)) == (3,)
    assert shardings(params, axes, MESH, {"embed": (), "mlp": ()})["up"]["kernel"].is_fully_replicated
