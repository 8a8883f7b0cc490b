"""What is particular to captions: how tokens are averaged, what length costs, and the divergence from the reference.

Letters: R sequences, N tokens of each.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
Aggregation = Literal["sequence", "token", "fixed"]
KLForm = Literal["k1", "k2", "k3"]


@dataclasses.dataclass(frozen=True)
class OverlongConfig:
    """What length costs, see `overlong_price`.

    Attributes:
      tokens: how many tokens below the limit the price begins; 0 asks none.
      price: at the limit, in units of the reward; 0 asks none.
    """

    tokens: int = 0
    price: float = 0.0

    def __post_init__(self):
        if self.tokens < 0 or self.price < 0 or bool(self.tokens) != bool(self.price):
            raise ValueError(f"tokens is {self.tokens}, price {self.price}; wanted both more than 0, or both 0")


def token_weights(mask: Array, aggregation: Aggregation) -> Array:
    """Weights with which the mean over sequences of the weighted sum over tokens is the loss of the whole batch.

    They are made of the whole batch, so that micro-batches add up to it.

    Args:
      mask: f32[R, N], 1 at the tokens that count.
      aggregation: "sequence", each sequence's mean counts the same, which favours short ones where they are good
        (GRPO); "token", every token of the batch counts the same (DAPO, arXiv 2503.14476); "fixed", sums are divided
        by N (Dr.GRPO, arXiv 2503.20783).

    Returns:
      f32[R, N], 0 outside the mask.

    Raises:
      ValueError: on another aggregation.
    """
    if aggregation == "sequence":
        return mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    if aggregation == "token":
        return mask * (mask.shape[0] / jnp.maximum(mask.sum(), 1))
    if aggregation == "fixed":
        return mask / mask.shape[1]
    raise ValueError(f"aggregation is {aggregation!r}, wanted 'sequence', 'token' or 'fixed'")


def overlong_price(lengths: Array, limit: int, config: OverlongConfig) -> Array:
    """The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13), times -`price`.

    Nothing up to `tokens` below the limit, from there in proportion to the length, and all of it at the limit.

    Args:
      lengths: i32[R], in tokens.
      limit: the most tokens that there can be.
      config: where it begins and where it ends.

    Returns:
      f32[R], to be taken from the rewards.

    Raises:
      ValueError: if the price begins below the first token.
    """
    if config.tokens > limit:
        raise ValueError(f"the price begins {config.tokens} tokens below the limit of {limit}, wanted {limit} at most")
    beyond = (lengths - (limit - config.tokens)).astype(jnp.float32)
    return config.price * jnp.clip(beyond / max(config.tokens, 1), 0, 1)


def token_kl(logprob: Array, reference: Array, form: KLForm) -> Array:
    """An estimate of the divergence at each token that was drawn; with d = log p - log p_ref:

    "k1" d, unbiased as a value, but its expected gradient as a loss is 0: it regularises nothing; "k2" d^2 / 2, whose
    gradient is that of KL(p || p_ref); "k3" exp(-d) + d - 1, unbiased, never negative, whose gradient is that of
    KL(p_ref || p) (arXiv 2510.01555).

    Args:
      logprob: f32[R, N], differentiable.
      reference: f32[R, N], of the reference.
      form: see above.

    Raises:
      ValueError: on another form.
    """
    difference = logprob - jax.lax.stop_gradient(reference)
    if form == "k1":
        return difference
    if form == "k2":
        return 0.5 * jnp.square(difference)
    if form == "k3":
        return jnp.expm1(-difference) + difference
    raise ValueError(f"form is {form!r}, wanted 'k2', 'k3' or 'k1'")
