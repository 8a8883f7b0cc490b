"""Works on a batch in parts, so that a rollout takes no more memory than one part needs."""

from collections.abc import Callable
from typing import Any

import jax

Tree = Any


def in_parts(function: Callable[[Tree], Tree], rows: Tree, size: int) -> Tree:
    """Applies a function to parts of at most `size` rows, one after another, as one `lax.map`.

    Part p of P holds the rows p, p + P, p + 2P, ...: so a batch that is split over devices stays where it is.

    Args:
      function: takes and returns trees of arrays whose leading axis counts rows, and treats rows alike.
      rows: tree of arrays, R rows each.
      size: rows at a time; 0 takes all at once. The number of parts is the least that divides R.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    parts = 1 if not size else next(p for p in range(-(-count // size), count + 1) if count % p == 0)
    if parts == 1:
        return function(rows)
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(count, *x.shape[2:]), jax.lax.map(function, split))
