"""Works on each copy of the weights by itself, and brings together what the copies found at the end.

Left to the partitioner, a gradient is summed over the copies wherever it arises: in every layer, every denoising step
and every micro-batch. Here each copy, a part of the mesh's axis "data", sums up its own, which is sent once.

What splits the work is one more axis of arrays (`jax.vmap`) that is laid over "data". A `jax.shard_map` over "data"
alone would say the same, but XLA's partitioner fails on sorting and on gathering within one (seen with jaxlib 0.10.2).
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from uae_jax.parallel import sharding

Tree = Any


def on_each(function: Callable[[Tree, Tree], tuple[Tree, Tree]], whole: Tree, rows: Tree) -> tuple[Tree, Tree]:
    """Applies a function to the rows of each copy of the weights.

    Inside, `sharding.constrain` passes over the axis, and `sharding.largest` still looks at all rows.

    Args:
      function: of (whole, some of the rows), to (means, rows): the former are averaged over the copies, the latter are
        put one behind the other.
      whole: tree of arrays that are not split over copies.
      rows: tree of arrays, R rows each, a multiple of the copies.

    Returns:
      as of the function, for all rows. Without a mesh in use, or with one copy, it is what the function returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    copies = 1 if mesh.empty else mesh.shape.get(sharding.COPIES, 1)
    if copies == 1:
        return function(whole, rows)

    def apart(x: jax.Array) -> jax.Array:
        free = (PartitionSpec.UNCONSTRAINED,) * x.ndim
        return jax.lax.with_sharding_constraint(
            x.reshape(copies, -1, *x.shape[1:]), PartitionSpec(sharding.COPIES, *free)
        )

    def own(rows: Tree) -> tuple[Tree, Tree]:
        means, found = function(whole, rows)
        return jax.tree.map(_kept, means), found

    with sharding.on_one_copy():
        each = jax.vmap(own, axis_name=sharding.COPIES, spmd_axis_name=sharding.COPIES)
        means, found = each(jax.tree.map(apart, rows))
    together = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
    return jax.tree.map(lambda x: x.mean(0), means), together


def _kept(x: jax.Array) -> jax.Array:
    """Asks the compiler to leave what a copy has found where it is."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(PartitionSpec.UNCONSTRAINED,) * x.ndim))
