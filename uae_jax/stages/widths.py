"""Works on texts at the least of a few widths that holds them all, so that what lies behind the longest costs little.

How long captions are is known on the device, and only when a step runs, but shapes must be known before: a function is
compiled once for each width, and every call takes one of them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.parallel.sharding import constrain

Array = jax.Array
Tree = Any

EIGHTHS = (4, 6, 8)  # of the full width: every further one is a compilation more, for at most an eighth of it
LEAST = 64  # positions; below there is nothing to gain
_ROUND = 8


def widths(full: int) -> tuple[int, ...]:
    """Ascending, the last is `full`.

    Args:
      full: positions that texts are padded to.
    """
    if full <= LEAST:
        return (full,)
    rounded = {-(-full * part // 8 // _ROUND) * _ROUND for part in EIGHTHS}
    return (*sorted(width for width in rounded if width < full), full)


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
    rung = jnp.searchsorted(jnp.asarray(ladder), lengths.max())
    return jax.lax.switch(rung, [lambda texts, w=width: function(texts[:, :w]) for width in ladder], texts)
