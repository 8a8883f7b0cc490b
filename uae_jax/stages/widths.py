"""Works on texts at the lesser of two widths where it holds them all, so that what lies behind the longest costs less.

How long captions are is known on the device, and only when a step runs, but shapes must be known before: a function is
compiled for both widths, and every call takes one of them.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.parallel.sharding import constrain

Array = jax.Array
Tree = Any

SHORT = 5 / 8  # of the full width; every further width would be a further compilation of the decoder
LEAST = 64  # positions; below there is nothing to gain
_ROUND = 8


def widths(full: int) -> tuple[int, ...]:
    """What texts may be cut to, ascending; the last is `full`, which is the only one where it is small.

    Args:
      full: positions that texts are padded to.
    """
    if full <= LEAST:
        return (full,)
    return math.ceil(full * SHORT / _ROUND) * _ROUND, full


def at_width(function: Callable[[Array], Tree], texts: Array, lengths: Array) -> Tree:
    """Applies a function to texts, cut behind the longest.

    Args:
      function: takes [R, W, ...], and does not depend on what lies behind `lengths`, nor its result's shapes on W.
      texts: [R, T, ...].
      lengths: i32[R], positions of each that count.

    Returns:
      What the function does.
    """
    ladder = widths(texts.shape[1])
    if len(ladder) == 1:
        return function(texts)
    # Whole rows are cut, see `conditioning.hidden_with_answers`.
    texts = constrain(texts, "batch", *(None,) * (texts.ndim - 1))
    rung = jnp.searchsorted(jnp.asarray(ladder), lengths.max())  # the least that is no smaller
    return jax.lax.switch(rung, [lambda texts, w=width: function(texts[:, :w]) for width in ladder], texts)
