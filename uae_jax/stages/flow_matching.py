"""Flow matching as Stable Diffusion 3 trains it (Esser et al. 2024, arXiv 2403.03206): noise levels, weights, loss.

x = (1 - sigma) x0 + sigma eps, and the model predicts the velocity eps - x0.

Letters: B samples, h/w latent height and width, Z latent channels.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Array = jax.Array
Weighting = Literal["none", "sigma_sqrt", "cosmap"]


def draw_sigmas(keys: Array, mean: float, std: float, shift: float) -> Array:
    """Draws f32[B] noise levels in (0, 1), by key[B]: logit-normal (section 3.1), then shifted (section 5.3.2)."""
    u = jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
    return shifted(u, shift)


def shifted(sigma: Array, shift: float) -> Array:
    """Moves noise levels up for images of more pixels: s sigma / (1 + (s - 1) sigma)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def shift_of_size(shift: float, side: int, height: int, width: int) -> float:
    """The shift that is to an image what `shift` is to one of side x side pixels: s sqrt(area / side^2)."""
    return shift * (height * width) ** 0.5 / side


def loss_weight(sigma: Array, scheme: Weighting) -> Array:
    """What a sample's squared error is multiplied by, f32[B].

    "none": 1, under which the logit-normal density of the noise levels is all the weighting there is, as published;
    "sigma_sqrt": sigma^-2; "cosmap": 2 / (pi (1 - 2 sigma + 2 sigma^2)). The names are diffusers'.

    Raises:
      ValueError: on another scheme.
    """
    if scheme == "none":
        return jnp.ones_like(sigma)
    if scheme == "sigma_sqrt":
        return sigma**-2.0
    if scheme == "cosmap":
        return 2 / (jnp.pi * (1 - 2 * sigma + 2 * sigma**2))
    raise ValueError(f"weighting is {scheme!r}, wanted 'none', 'sigma_sqrt' or 'cosmap'")


def noised(x0: Array, eps: Array, sigma: Array) -> Array:
    """The latent at a noise level: f32[B, h, w, Z], f32[B, h, w, Z], f32[B] -> f32[B, h, w, Z]."""
    sigma = sigma[:, None, None, None]
    return (1 - sigma) * x0 + sigma * eps


def squared_error(velocity: Array, x0: Array, eps: Array) -> Array:
    """f32[B], mean over h, w and Z of the squared error of a predicted velocity."""
    return jnp.square(velocity.astype(jnp.float32) - (eps - x0)).mean(axis=(1, 2, 3))
