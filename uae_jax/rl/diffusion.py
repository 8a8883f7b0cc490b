"""What is particular to denoising steps: divergences, guarded ratios, and the loss without ratios (NFT).

Letters: R paintings, H/W latent height and width, C latent channels.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from uae_jax.sampling.flow import Schedule

Array = jax.Array
StepKL = Literal["exact", "fg_code", "velocity"]
_PIXELS = (1, 2, 3)


def step_kl(schedule: Schedule, step: Array, v: Array, v_reference: Array, form: StepKL) -> Array:
    """Divergence of two policies at a step from the same latent: f32[R].

    Both transitions are normal with one deviation, so KL is the squared distance of their means over twice its square,
    here averaged over H, W and C like the log-density: with means c_x x + c_v v it is K mean((v - v_ref)^2), where
    K = c_v^2 / (2 std^2).

    Args:
      schedule: of the rollout.
      step: i32[], a step that adds noise.
      v, v_reference: [R, H, W, C]; no gradient flows through the second.
      form: "exact"; "fg_code", that times the step's width, as Flow-GRPO's code has it (its 2 sigma_t^2 lacks the
        width); "velocity", mean((v - v_ref)^2) alone, which weighs all steps alike.

    Raises:
      ValueError: on another form.
    """
    gap = velocity_gap(v, v_reference)
    if form == "velocity":
        return gap
    std = schedule.std[step]
    exact = jnp.where(std > 0, jnp.square(schedule.c_v[step]) / (2 * jnp.square(jnp.where(std > 0, std, 1.0))), 0.0)
    if form == "exact":
        return exact * gap
    if form == "fg_code":
        return exact * (schedule.sigma[step] - schedule.sigma[step + 1]) * gap
    raise ValueError(f"form is {form!r}, wanted 'exact', 'fg_code' or 'velocity'")


def velocity_gap(v: Array, v_reference: Array) -> Array:
    """mean((v - v_ref)^2) over H, W and C: f32[R]; no gradient flows through the reference."""
    difference = v.astype(jnp.float32) - jax.lax.stop_gradient(v_reference).astype(jnp.float32)
    return jnp.square(difference).mean(axis=_PIXELS)


def guarded_log_ratio(log_ratio: Array, mean: Array, mean_old: Array, std: Array) -> Array:
    """GRPO-Guard's (Wang et al. 2025, arXiv 2510.22319): centred, and of one scale at every step.

    Averaged over the noise that was drawn, log r is not 0 but -mean(dmu^2) / (2 std^2), and its spread is in
    proportion to 1 / std. Here that mean is taken back, each painting its own, and the rest multiplied by std.

    Args:
      log_ratio: f32[R], of log-densities averaged over H, W and C.
      mean, mean_old: f32[R, H, W, C], of the transition under the trained policy and under the one that acted.
      std: f32[].
    """
    bias = jnp.square(mean - jax.lax.stop_gradient(mean_old)).mean(axis=_PIXELS) / (2 * jnp.square(std))
    return std * (log_ratio + bias)


def optimality(advantage: Array, clamp: float = 5.0) -> Array:
    """NFT's r in [0, 1]: 1/2 + clip(A / clamp, -1, 1) / 2 (Zheng et al. 2025, arXiv 2509.16117)."""
    return 0.5 + 0.5 * jnp.clip(advantage / clamp, -1.0, 1.0)


def nft_loss(x: Array, x0: Array, sigma: Array, v: Array, v_old: Array, good: Array, beta: float) -> Array:
    """DiffusionNFT: contrasts an implied better and worse velocity, no ratio and no density in it: f32[R].

    v+- = v_old +- beta (v - v_old); the better one is to predict good paintings, the worse one bad ones:
    r |x0+ - x0|^2 / w+ + (1 - r) |x0- - x0|^2 / w-, where x0+- = x - sigma v+- and w is the mean absolute error,
    without a gradient.

    Args:
      x: f32[R, H, W, C], the painting noised to its level.
      x0: f32[R, H, W, C], what was painted.
      sigma: f32[R], the levels.
      v, v_old: f32[R, H, W, C], of the policy that is trained and of the one that painted.
      good: f32[R], `optimality`.
      beta: how far the implied velocities go.
    """
    v_old = jax.lax.stop_gradient(v_old)
    level = sigma[:, None, None, None]

    def distance(velocity: Array) -> Array:
        error = x - level * velocity - x0
        weight = jax.lax.stop_gradient(jnp.maximum(jnp.abs(error).mean(axis=_PIXELS), 1e-5))
        return jnp.square(error).mean(axis=_PIXELS) / weight

    better, worse = v_old + beta * (v - v_old), v_old - beta * (v - v_old)
    return good * distance(better) + (1 - good) * distance(worse)
