"""Pixels on their way into a batch, onto the device and back to a picture."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.data.records import Sample
from uae_jax.parallel import global_arrays

Array = jax.Array


def stack_images(samples: Sequence[Sample]) -> np.ndarray:
    """The images of a batch, u8[B, H, W, 3].

    Raises:
      ValueError: if a sample has none, or they are not all of one size; names the sample.
    """
    first = samples[0].image
    for sample in samples:
        if sample.image is None:
            raise ValueError(f"{sample.id}: no image, this stage wants one; set the data's resolution above 0")
        if sample.image.shape != first.shape:
            raise ValueError(f"{sample.id}: image of {sample.image.shape}, wanted {first.shape} as {samples[0].id}")
    return np.stack([sample.image for sample in samples])


def to_pm1(images_u8: Array) -> Array:
    """u8[..., 3] -> f32[..., 3] in [-1, 1], as the VAE has them."""
    return images_u8.astype(jnp.float32) * (2 / 255) - 1


def to_u8(images_pm1: Array) -> np.ndarray:
    """f32[..., 3] -> u8[..., 3] on the host; clipped to [-1, 1], rounded to nearest."""
    pixels = np.clip((np.asarray(global_arrays.to_host(images_pm1), np.float32) + 1) * 127.5, 0, 255)
    return np.round(pixels).astype(np.uint8)


def normalised(images_u8: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """u8[..., 3] -> f32[..., 3] with a model's channel mean and deviation (of pixels in [0, 1]) taken out."""
    mean, std = (jnp.asarray(value, jnp.float32) for value in (mean, std))
    return (images_u8.astype(jnp.float32) / 255 - mean) / std
