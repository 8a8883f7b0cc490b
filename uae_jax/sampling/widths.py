"""Works on texts at the lesser of two widths where it holds them all, so that what lies behind the longest costs less.

How long captions are is known on the device, and only when a step runs, but shapes must be known before: a function is
compiled for both widths, and every call takes one of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from uae_jax.parallel.sharding import constrain, largest

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


def at_width(function: Callable[..., Tree], texts: Array, lengths: Array, *operands: Tree) -> Tree:
    """Applies a function to texts, cut behind the longest.

    On the way back the function is evaluated again, at the same width. Were it not, all that its derivative reads would
    be handed on by the choice between widths, which copies what it hands on: weights too, those that are frozen.

    Args:
      function: takes ([R, W, ...], *operands), and does not depend on what lies behind `lengths`, nor its result's
        shapes on W.
      texts: [R, T, ...].
      lengths: i32[R], positions of each that count.
      operands: what else the function takes; all that a gradient is to flow to must be here, or among the texts.

    Returns:
      What the function does.
    """
    ladder = widths(texts.shape[1])
    if len(ladder) == 1:
        return function(texts, *operands)
    # Whole rows are cut, see `conditioning.hidden_with_answers`.
    texts = constrain(texts, "batch", *(None,) * (texts.ndim - 1))
    rung = jnp.searchsorted(jnp.asarray(ladder), largest(lengths))  # the least that is no smaller
    cut = [lambda given, w=width: function(given[0][:, :w], *given[1:]) for width in ladder]
    return _chosen(cut, rung, (texts, *operands))


def _chosen(branches: list[Callable[[Tree], Tree]], number: Array, given: Tree) -> Tree:
    """`jax.lax.switch` whose derivative keeps nothing but `given`, as it is."""

    @jax.custom_vjp
    def apply(number: Array, given: Tree) -> Tree:
        return jax.lax.switch(number, branches, given)

    def forward(number: Any, given: Tree) -> tuple[Tree, _Kept]:
        leaves, kind = jax.tree.flatten(given)  # each says whether a gradient flows to it
        values = kind.unflatten([leaf.value for leaf in leaves])
        kept = _Kept(number.value, values, tuple(leaf.perturbed for leaf in leaves))
        return jax.lax.switch(number.value, branches, values), kept

    def backward(kept: _Kept, cotangent: Tree) -> tuple[None, Tree]:
        leaves, kind = jax.tree.flatten(kept.given)
        cotangent = jax.tree.map(_numbers, cotangent, is_leaf=lambda x: isinstance(x, SymbolicZero))

        def pulled(branch: Callable[[Tree], Tree], leaves: list[Array], cotangent: Tree) -> list[Array]:
            def some(moving: list[Array]) -> Tree:
                rest = iter(moving)
                whole = [next(rest) if moves else x for x, moves in zip(leaves, kept.moving, strict=True)]
                return branch(kind.unflatten(whole))

            moving = [x for x, moves in zip(leaves, kept.moving, strict=True) if moves]
            return jax.vjp(some, moving)[1](cotangent)[0]

        back = [functools.partial(pulled, branch) for branch in branches]
        gradients = iter(jax.lax.switch(kept.number, back, leaves, cotangent))
        return None, kind.unflatten([next(gradients) if moves else None for moves in kept.moving])

    apply.defvjp(forward, backward, symbolic_zeros=True)
    return apply(number, given)


@flax.struct.dataclass
class _Kept:
    """For the way back: which branch it was, what it was given, and to which leaves of that a gradient flows."""

    number: Array
    given: Tree
    moving: tuple[bool, ...] = flax.struct.field(pytree_node=False)


def _numbers(cotangent: Any) -> Any:
    """A cotangent that `jax.vjp` takes."""
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    if jnp.issubdtype(cotangent.dtype, jax.dtypes.float0):
        return np.zeros(cotangent.shape, jax.dtypes.float0)
    return jnp.zeros(cotangent.shape, cotangent.dtype)
