"""The cutting of `uae_jax.data.vision_inputs` on the device, so that a batch travels as bytes of pixels.

Letters: B images, H/W height and width in pixels, P patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from uae_jax.data.vision_inputs import VisionInputConfig, smart_resize

Array = jax.Array


def fitted(images: np.ndarray, config: VisionInputConfig) -> np.ndarray:
    """Resizes u8[B, H, W, 3] on the host to whole tokens within the limits, as `image_patches` does."""
    height, width = smart_resize(*images.shape[1:3], config)
    if images.shape[1:3] == (height, width):
        return images
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in resized])


def patches_of(images: Array, config: VisionInputConfig) -> Array:
    """Normalises and cuts images whose sides are whole tokens.

    Args:
      images: u8[B, H, W, 3].
      config: sizes and statistics.

    Returns:
      f32[B, P, 3 * temporal * patch * patch], in the order of `image_patches`.
    """
    b, height, width, _ = images.shape
    p, m = config.patch, config.merge
    pixels = images.astype(jnp.float32) / 255
    pixels = (pixels - np.float32(config.mean)) / np.float32(config.std)
    rows, columns = height // p, width // p
    x = pixels.reshape(b, rows // m, m, p, columns // m, m, p, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    x = jnp.repeat(x[:, :, :, :, :, :, None], config.temporal, axis=6)  # [B, R, C, m, m, 3, frame, p, p]
    return x.reshape(b, rows * columns, -1)
