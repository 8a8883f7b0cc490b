"""Random views of images, made on the device: crops, flips, mild colour changes, blur.

All of it is linear algebra of fixed shapes, so a whole batch is one program, and each image's view depends on its own
key alone.

Letters: B images, H/W sides, S side of a crop.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

Array = jax.Array

_RATIO = (3 / 4, 4 / 3)  # of a crop's width to its height
_LUMA = (0.299, 0.587, 0.114)  # share of each channel in brightness, ITU-R BT.601


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How a view differs from its image.

    Attributes:
      scale: smallest and largest share of the image's area.
      flip: probability of mirroring left and right.
      jitter: probability of changing brightness, contrast and saturation.
      strength: largest relative change of each of the three; hue stays, since what is described has a colour.
      blur: probability of a gaussian blur, of a deviation of 0.1 to 2 pixels in 224, 0.3 pixels at least.
    """

    scale: tuple[float, float]
    flip: float = 0.0
    jitter: float = 0.8
    strength: float = 0.2
    blur: float = 0.2

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"scale is {self.scale}, wanted two shares of the area, 0 < low <= high <= 1")
        for name in ("flip", "jitter", "strength", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 to 1")


def views(images: Array, key: Array, side: int, augmentation: Augmentation) -> Array:
    """One random view of each image.

    Args:
      images: u8[B, H, W, 3].
      key: of the batch.
      side: S.
      augmentation: how they differ.

    Returns:
      f32[B, S, S, 3] in [0, 1].
    """
    keys = jax.random.split(key, images.shape[0])
    one = functools.partial(_view, side=side, augmentation=augmentation)
    return jax.vmap(one)(images.astype(jnp.float32) / 255, keys)


def _view(image: Array, key: Array, *, side: int, augmentation: Augmentation) -> Array:
    crop_key, flip_key, jitter_key, blur_key = jax.random.split(key, 4)
    x = cut(image, box(crop_key, image.shape[:2], augmentation.scale), side)
    if augmentation.flip:
        x = jnp.where(jax.random.bernoulli(flip_key, augmentation.flip), x[:, ::-1], x)
    if augmentation.jitter:
        x = _jittered(x, jitter_key, augmentation)
    if augmentation.blur:
        x = _blurred(x, blur_key, augmentation.blur)
    return x


def box(key: Array, size: tuple[int, int], scale: tuple[float, float]) -> Array:
    """A random box inside an image: f32[4], top, left, height and width in pixels.

    Its area is uniform within `scale`, its shape log-uniform within 3/4 and 4/3; a side that would be longer than the
    image's is cut to it.
    """
    area_key, ratio_key, top_key, left_key = jax.random.split(key, 4)
    share = jax.random.uniform(area_key, minval=scale[0], maxval=scale[1])
    ratio = jnp.exp(jax.random.uniform(ratio_key, minval=math.log(_RATIO[0]), maxval=math.log(_RATIO[1])))
    area = share * size[0] * size[1]
    height, width = jnp.minimum(jnp.sqrt(area / ratio), size[0]), jnp.minimum(jnp.sqrt(area * ratio), size[1])
    top = jax.random.uniform(top_key) * (size[0] - height)
    left = jax.random.uniform(left_key) * (size[1] - width)
    return jnp.stack([top, left, height, width])


def cut(image: Array, box: Array, side: int) -> Array:
    """Resizes a box of an image to a square, antialiased: f32[H, W, 3], f32[4] -> f32[S, S, 3] in [0, 1]."""
    scale = side / box[2:]
    shape = (side, side, image.shape[-1])
    x = jax.image.scale_and_translate(image, shape, (0, 1), scale, -box[:2] * scale, "linear", antialias=True)
    return jnp.clip(x, 0, 1)


def _jittered(x: Array, key: Array, augmentation: Augmentation) -> Array:
    """Brightness, contrast and saturation, each by a factor of 1 - strength to 1 + strength."""
    whether_key, factor_key = jax.random.split(key)
    strength = augmentation.strength
    brightness, contrast, saturation = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
    y = x * brightness
    mean = (y @ jnp.array(_LUMA)).mean()
    y = mean + (y - mean) * contrast
    grey = (y @ jnp.array(_LUMA))[..., None]
    y = jnp.clip(grey + (y - grey) * saturation, 0, 1)
    return jnp.where(jax.random.bernoulli(whether_key, augmentation.jitter), y, x)


def _blurred(x: Array, key: Array, probability: float) -> Array:
    """Gaussian blur as one matrix along each side; beyond the edge there is nothing, the others' weights sum to 1."""
    whether_key, sigma_key = jax.random.split(key)
    side = x.shape[0]
    sigma = jnp.maximum(jax.random.uniform(sigma_key, minval=0.1, maxval=2.0) * side / 224, 0.3)
    distance = jnp.arange(side)[:, None] - jnp.arange(side)
    matrix = jax.nn.softmax(-jnp.square(distance / sigma) / 2, axis=-1)
    y = jnp.einsum("hi,wj,ijc->hwc", matrix, matrix, x, precision="highest")
    return jnp.where(jax.random.bernoulli(whether_key, probability), y, x)
