"""From rewards of a group to advantages.

Letters: B groups, G members of each.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
_EQUAL = 1e-6  # deviation within a group, of rewards about 1, that may be rounding alone


@dataclasses.dataclass(frozen=True)
class AdvantageConfig:
    """How rewards are normalised.

    Attributes:
      std: what the distance to the group's mean is divided by: the "group"'s own deviation (GRPO), that of the whole
        "batch" (Flow-GRPO), or "none" (Dr.GRPO).
      bessel: divide by G - 1 rather than G under the root (of a batch, likewise).
      epsilon: added to the deviation.
      floor: groups whose own deviation is below it teach nothing: their advantages are 0. Cosines are never exactly
        equal, and dividing by what is nearly 0 would blow noise up.
      clamp: largest absolute advantage; 0 for no limit.
    """

    std: Literal["group", "batch", "none"] = "group"
    bessel: bool = False
    epsilon: float = 1e-4
    floor: float = 1e-3
    clamp: float = 5.0

    def __post_init__(self):
        if self.std not in ("group", "batch", "none"):
            raise ValueError(f"std is {self.std!r}, wanted 'group', 'batch' or 'none'")
        if min(self.epsilon, self.floor, self.clamp) < 0:
            raise ValueError(
                f"epsilon is {self.epsilon}, floor {self.floor}, clamp {self.clamp}; wanted none of them below 0"
            )


def group_advantages(rewards: Array, config: AdvantageConfig = AdvantageConfig()) -> tuple[Array, dict[str, Array]]:
    """How much better than its group each member did (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    Args:
      rewards: f32[B, G], G at least 2.
      config: normalisation.

    Returns:
      f32[B, G], of mean 0 in every group before clamping, no gradient flows through it; and the metrics "reward",
      "reward_std" (mean deviation within a group) and "zero_variance_groups" (fraction of the groups that are below
      the floor or whose rewards are equal but for rounding), f32[].

    Raises:
      ValueError: if a group has a single member.
    """
    members = rewards.shape[1]
    if members < 2:
        raise ValueError(f"groups have {members} member, wanted at least 2: an advantage compares within a group")
    rewards = jax.lax.stop_gradient(rewards.astype(jnp.float32))
    ddof = int(config.bessel)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    own = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True) / (members - ddof))
    scale = {"group": own, "batch": jnp.std(rewards, ddof=ddof), "none": jnp.ones_like(own)}[config.std]
    epsilon = 0.0 if config.std == "none" else config.epsilon
    flat = own < config.floor
    advantages = jnp.where(flat, 0.0, centred / jnp.where(flat, 1.0, scale + epsilon))
    if config.clamp:
        advantages = jnp.clip(advantages, -config.clamp, config.clamp)
    equal = (own < max(config.floor, _EQUAL)).mean(dtype=jnp.float32)
    metrics = {"reward": rewards.mean(), "reward_std": own.mean(), "zero_variance_groups": equal}
    return advantages, metrics
