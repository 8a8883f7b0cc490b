"""What is read off a compiled program."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from uae_jax.parallel.mesh import abstract_mesh, make_mesh
from uae_jax.plan.collectives import collectives, weight_reductions

# As the TPU compiler writes: a loop over layers that gathers, or sums, a weight; a gradient that is scattered.
HLO = """
%all-reduce-scatter.1 (param: f32[2432,9728]) -> f32[304,9728] {
  %all-reduce.7 = f32[2432,9728]{1,0} all-reduce(%param), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice = f32[304,9728]{1,0} dynamic-slice(%all-reduce.7, %i)
}

%body.2 (arg: (s32[], bf16[304,9728])) -> (s32[], bf16[304,9728]) {
  %all-gather-start.3 = (bf16[304,9728]{1,0}, bf16[2432,9728]{1,0}) all-gather-start(%w), dimensions={0}
  %all-gather-done.3 = bf16[2432,9728]{1,0} all-gather-done(%all-gather-start.3)
  %all-reduce.4 = bf16[2432,2432]{1,0} all-reduce(%padded), to_apply=%add
  %fusion.1 = f32[304,9728]{1,0} fusion(%g), calls=%all-reduce-scatter.1
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %while.1 = (s32[], bf16[304,9728]) while(%t), condition=%cond.1, body=%body.2
  ROOT %all-reduce.9 = f32[] all-reduce(%loss), to_apply=%add
}
"""


def test_kinds_loops_and_sizes():
    found = {each.kind: each for each in collectives(HLO)}
    gather, reduce, scatter = (found[kind] for kind in ("all-gather", "all-reduce", "reduce-scatter"))
    assert (gather.count, gather.in_loops, gather.largest) == (1, 1, 2 * 2432 * 9728)
    # A sum that is scattered at once is no all-reduce, though one stands in its fusion.
    assert (reduce.count, reduce.in_loops, reduce.total) == (2, 1, 2 * 2432 * 2432 + 4)
    assert scatter.count == 1 and scatter.in_loops == 1 and scatter.largest == 4 * 2432 * 9728
    assert reduce.shapes == (("bf16[2432,2432]", 1),)  # the loss is too small to be listed


def test_the_last_branch_of_a_choice_counts():
    """A program that is compiled for two widths runs one of them; it sends no more than that one."""
    mesh = make_mesh(fsdp=8)
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    x = jax.ShapeDtypeStruct((4, 256), jnp.float32, sharding=place(None, "fsdp"))

    def run(which, x):
        squares = lambda width: lambda x: (x[:, :width] ** 2).sum()  # noqa: E731
        return jax.lax.switch(which, [squares(128), squares(256)], x)

    compiled = jax.jit(run, out_shardings=place()).lower(jax.ShapeDtypeStruct((), jnp.int32), x).compile()
    whole = jax.jit(lambda x: (x**2).sum(), out_shardings=place()).lower(x).compile()
    assert collectives(compiled.as_text()) == collectives(whole.as_text()) != []


def test_sums_of_whole_weights_are_named():
    mesh = abstract_mesh(8, fsdp=8)
    split, whole = PartitionSpec(None, "fsdp"), PartitionSpec()
    stack = lambda spec: jax.ShapeDtypeStruct((37, 2432, 2432), "float32", sharding=NamedSharding(mesh, spec))  # noqa: E731
    assert weight_reductions(collectives(HLO), {"q": stack(split)}) == ["bf16[2432,2432] x 1"]
    assert weight_reductions(collectives(HLO), {"q": stack(whole)}) == []  # what all chips hold is summed rightly


def test_of_a_real_program():
    """Weights that are split over fsdp are gathered on CPUs, too."""
    mesh = make_mesh(fsdp=8)
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=place("fsdp"))
    w = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=place("fsdp"))
    compiled = jax.jit(lambda x, w: x @ w, out_shardings=place("fsdp")).lower(x, w).compile()
    found = {each.kind: each for each in collectives(compiled.as_text())}
    assert found["all-gather"].largest == 4 * 1024 * 1024 and found["all-gather"].in_loops == 0
