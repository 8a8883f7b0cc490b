"""Arrays of a mesh that spans processes: from the hosts to it, and back.

A batch's rows are split over devices, so each process needs some of them only: `rows_here` says which. A process may
need the same rows as another one, where a model is split over both.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from uae_jax.parallel import sharding

Tree = Any


def rows_here(mesh: Mesh, count: int) -> np.ndarray:
    """Which of a batch's `count` rows lie on devices of this process: i64[rows], rising."""
    placed = NamedSharding(mesh, sharding.partition_spec((count,), ("batch",), mesh))
    parts = [np.arange(count)[index[0]] for index in placed.addressable_devices_indices_map((count,)).values()]
    return np.unique(np.concatenate(parts))


def put(array: Any, placed: Any) -> jax.Array:
    """Puts an array that every process has as a whole where a sharding says; each device takes its part."""
    if isinstance(getattr(placed, "mesh", None), AbstractMesh):  # shapes alone: no device holds anything
        return jax.device_put(array, placed)
    if placed.is_fully_addressable or (isinstance(array, jax.Array) and not array.is_fully_addressable):
        return jax.device_put(array, placed)
    # `device_put` would send everything around, to see that all have the same.
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, placed, lambda index: array[index])


def put_rows(array: np.ndarray, rows: Sequence[int], count: int, mesh: Mesh) -> jax.Array:
    """Puts this process's rows of an array on the mesh, split over the axes of "batch".

    Args:
      array: [len(rows), ...].
      rows: of `rows_here`.
      count: rows of the whole.
      mesh: of all processes.

    Returns:
      The whole, [count, ...].
    """
    shape = (count, *array.shape[1:])
    spec = sharding.partition_spec(shape, ["batch", *[None] * (array.ndim - 1)], mesh)
    placed = NamedSharding(mesh, spec)
    if placed.is_fully_addressable:
        return jax.device_put(array, placed)
    rows = np.asarray(rows)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(count)
        first = int(np.searchsorted(rows, start))
        return array[first : first + stop - start]

    return jax.make_array_from_callback(shape, placed, part)


def to_host(tree: Tree) -> Tree:
    """Fetches arrays as a whole to every process; all of them ask together, in one order, in their main threads."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_whole, tree)


def _whole(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return jax.device_get(leaf)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_data(0))
    return multihost_utils.process_allgather(leaf, tiled=True)
