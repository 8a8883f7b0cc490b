"""Images into the shapes of a batch: aspect buckets, resizing, cropping, mirroring.

Shapes are (H, W), as arrays have them; sizes are (width, height), as Pillow has them.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

Shape = tuple[int, int]
Crop = Literal["center", "random"]


def bucket_shapes(resolution: int, aspects: Sequence[float], multiple_of: int) -> tuple[Shape, ...]:
    """The shapes that images of these aspects are brought to, of about the same area.

    Args:
      resolution: square root of the area, in pixels.
      aspects: width over height, each more than zero.
      multiple_of: each side is the nearest multiple of it, at least one.

    Returns:
      (H, W) of each aspect, in their order; aspects that give the same shape share it.

    Raises:
      ValueError: if a number is not positive, or no aspect is given.
    """
    if resolution < 1 or multiple_of < 1:
        raise ValueError(f"resolution is {resolution} and multiple_of {multiple_of}, wanted positive numbers")
    if not aspects or min(aspects) <= 0:
        raise ValueError(f"aspects are {tuple(aspects)}, wanted at least one, width over height, each more than 0")

    def side(length: float) -> int:
        return max(math.floor(length / multiple_of + 0.5), 1) * multiple_of

    shapes = [(side(resolution / math.sqrt(aspect)), side(resolution * math.sqrt(aspect))) for aspect in aspects]
    return tuple(dict.fromkeys(shapes))


def nearest_bucket(size: tuple[int, int], shapes: Sequence[Shape]) -> int:
    """The index of the shape whose aspect is nearest to the image's, in logarithm; the first one of equals.

    Args:
      size: (width, height) of the image, upright.
      shapes: (H, W).
    """
    aspect = math.log(size[0] / size[1])
    return min(range(len(shapes)), key=lambda i: abs(math.log(shapes[i][1] / shapes[i][0]) - aspect))


def resize_and_crop(
    image: Image.Image, shape: Shape, crop: Crop = "center", rng: np.random.Generator | None = None
) -> np.ndarray:
    """Scales an image until it just covers the shape, antialiased, and cuts off what stands out.

    Args:
      image: RGB.
      shape: (H, W) wanted.
      crop: which part is kept, where something stands out.
      rng: for "random".

    Returns:
      u8[H, W, 3]; of an image that has this size already, its very pixels.
    """
    height, width = shape
    if image.size == (width, height):
        return np.array(image, np.uint8)
    scale = max(width / image.width, height / image.height)
    kept = (width / scale, height / scale)  # in pixels of the image
    spare = (max(image.width - kept[0], 0.0), max(image.height - kept[1], 0.0))
    at = (0.5, 0.5)
    if crop == "random":
        if rng is None:
            raise ValueError('crop "random" needs an rng')
        at = (rng.random(), rng.random())
    left, top = spare[0] * at[0], spare[1] * at[1]
    # Rounding must not let the box stand out by a hair, which Pillow refuses.
    box = (left, top, min(left + kept[0], image.width), min(top + kept[1], image.height))
    return np.array(image.resize((width, height), Image.Resampling.BICUBIC, box=box), np.uint8)


def mirror(image: np.ndarray) -> np.ndarray:
    """u8[H, W, 3] -> the same, left and right swapped."""
    return np.ascontiguousarray(image[:, ::-1])
