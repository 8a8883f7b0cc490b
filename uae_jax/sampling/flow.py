"""Rectified flow: noise schedules, one transition density, one sampler loop.

Time runs with sigma from 1 (noise) to 0 (image): x = (1 - sigma) x0 + sigma eps, and the model predicts the velocity
v = eps - x0. Every way of stepping here is linear in x and v,

    x' ~ Normal(c_x x + c_v v, std^2),

so a schedule is three numbers per step, computed once in float64, and sampling, scoring and training share them. The
forms are "ode" (Euler, std 0), "sde" (Flow-GRPO, Liu et al. 2025, arXiv 2505.05470) and "cps" (coefficients-
preserving sampling, Wang et al. 2025, arXiv 2509.05952).

Letters: N steps, B batch, H/W latent height and width, C latent channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

FORMS = ("ode", "sde", "cps")
SIGMA_COMPAT = ("diffusers", "exact")
TRAIN_STEPS = 1000  # the transformer sees 1000 sigma as its timestep


@flax.struct.dataclass
class Schedule:
    """N steps from noise to image; arrays, so that a new window or noise level does not recompile.

    Attributes:
      sigma: f32[N + 1] noise levels, falling, the last is 0.
      c_x: f32[N] what of x stays in the mean of the next x.
      c_v: f32[N] what of v is added; negative.
      std: f32[N] noise added; 0 where the step is deterministic.
    """

    sigma: Array
    c_x: Array
    c_v: Array
    std: Array

    @property
    def steps(self) -> int:
        return self.c_x.shape[0]

    @property
    def timestep(self) -> Array:
        """f32[N], what the transformer takes: 1000 sigma."""
        return self.sigma[:-1] * TRAIN_STEPS


def sigmas(steps: int, shift: float = 3.0, sigma_compat: str = "diffusers") -> np.ndarray:
    """The noise levels of flow-match Euler with static shift: sigma = s u / (1 + (s - 1) u), u falling evenly from 1.

    Args:
      steps: N.
      shift: s; 3 for SD3.
      sigma_compat: "diffusers" ends u at the smallest *already shifted* level, so the last sigma is shifted twice, as
        `FlowMatchEulerDiscreteScheduler` does (diffusers issue 13243); "exact" ends it at 1 / 1000.

    Returns:
      f64[N + 1], the last is 0.

    Raises:
      ValueError: on fewer than one step, more than there are levels, a shift that is not positive, or an unknown
        `sigma_compat`.
    """
    if not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps is {steps}, wanted 1 to {TRAIN_STEPS}")
    if shift <= 0:
        raise ValueError(f"shift is {shift}, wanted a positive number")
    if sigma_compat not in SIGMA_COMPAT:
        raise ValueError(f"sigma_compat is {sigma_compat!r}, wanted one of {', '.join(SIGMA_COMPAT)}")

    def shifted(u: np.ndarray) -> np.ndarray:
        return shift * u / (1 + (shift - 1) * u)

    smallest = 1 / TRAIN_STEPS
    u = np.linspace(1.0, shifted(smallest) if sigma_compat == "diffusers" else smallest, steps)
    return np.append(shifted(u), 0.0)


def make_schedule(
    steps: int,
    *,
    shift: float = 3.0,
    form: str = "ode",
    noise_level: float = 0.7,
    window: tuple[int, int] | None = None,
    sigma_compat: str = "diffusers",
) -> Schedule:
    """Builds the schedule of a rollout.

    Args:
      steps: N.
      shift: see `sigmas`.
      form: "ode", "sde" or "cps".
      noise_level: a of the SDE (0.7 in Flow-GRPO) or eta of CPS; 0 gives the ODE.
      window: (first, last + 1) of the stochastic steps; the others are ODE steps. None: all.
      sigma_compat: see `sigmas`.

    Raises:
      ValueError: on an unknown form, a negative noise level or a window outside the steps.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, wanted one of {', '.join(FORMS)}")
    if noise_level < 0 or (form == "cps" and noise_level > 1):
        raise ValueError(f"noise_level is {noise_level}, wanted {'0 to 1' if form == 'cps' else 'at least 0'}")
    first, stop = (0, steps) if window is None else window
    if not 0 <= first <= stop <= steps:
        raise ValueError(f"window is ({first}, {stop}), wanted two ascending numbers from 0 to {steps}")
    sigma = sigmas(steps, shift, sigma_compat)
    levels = np.zeros(steps)
    levels[first:stop] = noise_level
    return schedule_from_sigmas(sigma, form, levels)


def schedule_from_sigmas(sigma: Sequence[float], form: str, levels: Sequence[float]) -> Schedule:
    """Coefficients for given noise levels f64[N + 1] and a noise level per step f64[N]."""
    sigma, levels = np.asarray(sigma, np.float64), np.asarray(levels, np.float64)
    now, after = sigma[:-1], sigma[1:]
    delta = now - after
    c_x, c_v, std = np.ones_like(now), -delta, np.zeros_like(now)
    noisy = (levels > 0) & (form != "ode")
    if form == "sde":
        # sigma_t = a sqrt(t / (1 - t)) is infinite at t = 1: only there, the denominator takes the next level.
        finite = np.where(now == 1.0, after, now)
        variance = levels**2 * now / (1 - finite)
        c_x = np.where(noisy, 1 - variance * delta / (2 * now), c_x)
        c_v = np.where(noisy, -delta * (1 + variance * (1 - now) / (2 * now)), c_v)
        std = np.where(noisy, np.sqrt(variance * delta), std)
    elif form == "cps":
        # mean = (1 - s') x0 + s' cos(eta pi / 2) eps, with x0 = x - s v and eps = x + (1 - s) v
        keep = after * np.cos(levels * math.pi / 2)
        c_x = np.where(noisy, (1 - after) + keep, c_x)
        c_v = np.where(noisy, -(1 - after) * now + keep * (1 - now), c_v)
        std = np.where(noisy, after * np.sin(levels * math.pi / 2), std)
    return Schedule(*(jnp.asarray(value, jnp.float32) for value in (sigma, c_x, c_v, std)))


def windowed(noisy: Schedule, first: Array | int, width: int) -> Schedule:
    """Keeps the noise of `width` steps from `first` on; the others become ODE steps. `first` may be traced: i32[]."""
    step = jnp.arange(noisy.steps)
    inside = (step >= first) & (step < first + width)
    return noisy.replace(
        c_x=jnp.where(inside, noisy.c_x, 1.0),
        c_v=jnp.where(inside, noisy.c_v, noisy.sigma[1:] - noisy.sigma[:-1]),
        std=jnp.where(inside, noisy.std, 0.0),
    )


def transition(schedule: Schedule, step: Array | int, x: Array, v: Array) -> tuple[Array, Array]:
    """The density of the next latent: mean f32[B, H, W, C] and standard deviation f32[] (0 on an ODE step).

    Args:
      schedule: the rollout's.
      step: i32[], which step this is.
      x: f32[B, H, W, C] latent now.
      v: [B, H, W, C] predicted velocity.
    """
    x, v = x.astype(jnp.float32), v.astype(jnp.float32)
    return schedule.c_x[step] * x + schedule.c_v[step] * v, schedule.std[step]


def logprob(x_next: Array, mean: Array, std: Array) -> Array:
    """Log-density of a step, in nats averaged over H, W and C (Flow-GRPO's convention; the sum overflows ratios).

    Args:
      x_next: f32[B, H, W, C] what was drawn; no gradient flows through it.
      mean: f32[B, H, W, C].
      std: f32[], or f32[B].

    Returns:
      f32[B]; zeros where std is 0, since an ODE step has no density.
    """
    std = jnp.broadcast_to(std, x_next.shape[:1]).reshape(-1, *(1,) * (x_next.ndim - 1))
    safe = jnp.where(std > 0, std, 1.0)
    error = (jax.lax.stop_gradient(x_next) - mean) / safe
    density = -0.5 * jnp.square(error) - jnp.log(safe) - 0.5 * math.log(2 * math.pi)
    return jnp.where(std > 0, density, 0.0).mean(axis=tuple(range(1, x_next.ndim)))


def initial_noise(keys: Array, shape: tuple[int, int, int]) -> Array:
    """Draws f32[B, H, W, C] with a key per image, so that an image does not depend on its batch."""
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def sample(
    velocity: Callable[[Array, Array], Array],
    latents: Array,
    schedule: Schedule,
    keys: Array | None = None,
    *,
    trajectory: bool = False,
) -> tuple[Array, Any]:
    """Runs all steps as one `lax.scan`.

    Args:
      velocity: (x f32[B, H, W, C], step i32[]) -> v; guidance is its business.
      latents: f32[B, H, W, C] noise.
      schedule: the steps.
      keys: a PRNG key per image for the steps' noise; None for an ODE rollout.
      trajectory: also return every latent, its log-density and the mean that it was drawn around, for training; what
        is not used of them is not kept.

    Returns:
      latents at sigma 0; and None or {"latents": f32[N + 1, B, H, W, C], "logprob": f32[N, B], "mean": f32[N, B, H, W,
      C]}.

    Raises:
      ValueError: if there are no keys and the schedule is known to be stochastic.
    """
    if keys is None and not isinstance(schedule.std, jax.core.Tracer) and bool(jnp.any(schedule.std > 0)):
        raise ValueError("the schedule adds noise but no keys were given; pass one key per image, or form='ode'")

    def step(x: Array, i: Array) -> tuple[Array, Any]:
        mean, std = transition(schedule, i, x, velocity(x, i))
        if keys is None:
            x_next = mean
        else:
            x_next = mean + std * initial_noise(jax.vmap(lambda k: jax.random.fold_in(k, i))(keys), x.shape[1:])
        return x_next, (x_next, logprob(x_next, mean, std), mean) if trajectory else None

    latents = latents.astype(jnp.float32)
    final, kept = jax.lax.scan(step, latents, jnp.arange(schedule.steps))
    if not trajectory:
        return final, None
    path, density, means = kept
    return final, {"latents": jnp.concatenate([latents[None], path]), "logprob": density, "mean": means}
