"""Works on a batch in parts, so that a rollout takes no more memory than one part needs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.parallel import replicas, sharding

Tree = Any


def parts_within(rows: int, most: int, mesh: Any) -> int:
    """In how many parts a device has at most `most` rows at a time: the least that divides the rows of each device.

    A part whose rows the devices could not share evenly would be worked on as a whole by each of them.
    """
    own = rows // sharding.shards(rows, "batch", mesh)
    return next(parts for parts in range(-(-own // most), own + 1) if own % parts == 0)


def in_parts(function: Callable[[Tree], Tree], rows: Tree, parts: int) -> Tree:
    """Applies a function to P parts of a batch, one after another, as one `lax.map`.

    Part p of P holds the rows p, p + P, p + 2P, ...: so a batch that is split over devices stays where it is.

    Args:
      function: takes and returns trees of arrays whose leading axis counts rows, and treats rows alike.
      rows: tree of arrays, R rows each.
      parts: P, a divisor of R; on devices, of the rows of each: `parts_within` finds one.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(count, *x.shape[2:]), jax.lax.map(function, split))


def of_later_updates(function: Callable[[Tree], Tree], rows: Tree, updates: int, accumulate: int) -> Tree:
    """What a function makes of the rows of all but a step's first update, in the micro-batches that they train in.

    For what the parameters before the step make of rows: the first update, which is of these, has it without asking.

    Args:
      function, rows: as `in_parts`; update u of U has the rows u, u + U, u + 2U, ...
      updates, accumulate: U, at least 2; micro-batches of each.

    Returns:
      the results, zeros for rows of the first update; and "before" bool[R], which those are.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    later = jax.tree.map(lambda x: x.reshape(-1, updates, *x.shape[1:])[:, 1:].reshape(-1, *x.shape[1:]), rows)

    def placed(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, updates - 1, *x.shape[1:])
        return jnp.concatenate([jnp.zeros_like(x[:, :1]), x], axis=1).reshape(-1, *x.shape[2:])

    def own(_: Tree, later: Tree) -> tuple[Tree, Tree]:
        return {}, in_parts(function, later, (updates - 1) * accumulate)

    _, found = replicas.on_each(own, {}, later)  # as the gradient is taken, or they would round differently
    return {**jax.tree.map(placed, found), "before": jnp.arange(count) % updates == 0}
