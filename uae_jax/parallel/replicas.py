"""Works on each copy of the weights by itself, and brings together what the copies found at the end.

Left to the partitioner, a gradient is summed over the copies wherever it arises: in every layer, every denoising step
and every micro-batch. Here the axis "data" is the program's own, and what it has summed up by the end is sent once.
The other axes stay the partitioner's.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

AXIS = "data"

Tree = Any


def on_each(function: Callable[[Tree, Tree], tuple[Tree, Tree]], whole: Tree, rows: Tree) -> tuple[Tree, Tree]:
    """Applies a function to the rows of each copy of the weights.

    Inside, `sharding.constrain` knows nothing of the axis, and `sharding.largest` still looks at all rows.

    Args:
      function: of (whole, some of the rows), to (means, rows): the former are averaged over the copies, the latter are
        put one behind the other.
      whole: tree of arrays that are not split over copies.
      rows: tree of arrays, R rows each, a multiple of the copies.

    Returns:
      as of the function, for all rows. Without a mesh in use, or with one copy, it is what the function returns.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get(AXIS, 1) == 1:
        return function(whole, rows)

    def own(whole: Tree, rows: Tree) -> tuple[Tree, Tree]:
        means, found = function(whole, rows)
        return jax.tree.map(lambda x: x[None], means), found

    every, each = PartitionSpec(), PartitionSpec(AXIS)
    apart = jax.shard_map(
        own, in_specs=(every, each), out_specs=(each, each), axis_names=frozenset({AXIS}), check_vma=False
    )
    means, found = apart(whole, rows)
    return jax.tree.map(lambda x: x.mean(0), means), found
