"""The clipped surrogate objectives, of tokens and of denoising steps alike.

Letters: R sequences, or paintings; N tokens of each, 1 for a painting's step.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from uae_jax.averages import Mean

Array = jax.Array

MAX_LOG_RATIO = 20.0  # beyond it the ratio is what it is there: exp(20) is far outside every clip


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """How far the policy may move away from the one that acted.

    Attributes:
      kind: "ppo", -min(r A, clip(r) A) for each token; "gspo", the same with one ratio for a sequence, the geometric
        mean of its tokens' (Zheng et al. 2025, arXiv 2507.18071); "cispo", -min(r, 1 + high) A log p, whose weight
        carries no gradient (MiniMax 2025, arXiv 2506.13585).
      low, high: the ratio is held within [1 - low, 1 + high]; a higher `high` is DAPO's clip-higher (2503.14476).
      dual: where A < 0, -r A is held below -dual A, which the clip alone leaves unbounded; 0 is off, else above 1.
    """

    kind: Literal["ppo", "gspo", "cispo"] = "ppo"
    low: float = 0.2
    high: float = 0.28
    dual: float = 0.0

    def __post_init__(self):
        if self.kind not in ("ppo", "gspo", "cispo"):
            raise ValueError(f"kind is {self.kind!r}, wanted 'ppo', 'gspo' or 'cispo'")
        if not (0 < self.low <= 1 and self.high > 0):
            raise ValueError(f"low is {self.low}, high {self.high}, wanted 0 < low <= 1 and high above 0")
        if self.dual and self.dual <= 1:
            raise ValueError(f"dual is {self.dual}, wanted 0 (off) or more than 1")


def surrogate(logprob: Array, old: Array, advantage: Array, mask: Array, config: ClipConfig) -> tuple[Array, Array]:
    """The loss of every token, before it is averaged.

    Args:
      logprob: f32[R, N], of what was done, under the policy that is trained.
      old: f32[R, N], under the policy that did it.
      advantage: f32[R].
      mask: f32[R, N], 1 where there is a token.
      config: kind and limits.

    Returns:
      f32[R, N] loss, and f32[R, N] ratio (of the whole sequence, for "gspo").
    """
    advantage = advantage[:, None]
    log_ratio = logprob - jax.lax.stop_gradient(old)
    if config.kind == "gspo":
        log_ratio = (log_ratio * mask).sum(axis=1, keepdims=True) / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
        log_ratio = jnp.broadcast_to(log_ratio, logprob.shape)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if config.kind == "cispo":
        weight = jax.lax.stop_gradient(jnp.minimum(ratio, 1 + config.high))
        return -weight * advantage * logprob, ratio
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - config.low, 1 + config.high) * advantage)
    if config.dual:
        gain = jnp.where(advantage < 0, jnp.maximum(gain, config.dual * advantage), gain)
    return -gain, ratio


def ratio_metrics(ratio: Array, advantage: Array, mask: Array, config: ClipConfig) -> dict[str, Array | Mean]:
    """What the ratios look like, over the tokens of the mask.

    Args:
      ratio, mask: f32[R, N].
      advantage: f32[R].
      config: limits.

    Returns:
      "ratio_min", "ratio_mean", "ratio_max"; "clip_high" and "clip_low", the fractions whose gradient is cut off
      above and below: all of it on the low side at a first update is a sign of lost precision, not of learning.
    """
    there, advantage = mask > 0, advantage[:, None]
    return {
        "ratio_min": jnp.where(there.any(), jnp.where(there, ratio, jnp.inf).min(), 1.0),
        "ratio_mean": Mean.of(ratio, mask, otherwise=1.0),
        "ratio_max": jnp.where(there.any(), jnp.where(there, ratio, -jnp.inf).max(), 1.0),
        "clip_high": Mean.of((ratio > 1 + config.high) & (advantage > 0), mask),
        "clip_low": Mean.of((ratio < 1 - config.low) & (advantage < 0), mask),
    }
