"""Real photographs of different shapes, from scikit-image's package."""

import functools

import numpy as np
import skimage.data
from PIL import Image


@functools.cache
def photographs() -> tuple[Image.Image, ...]:
    """A square portrait, a wide cup and a tall detail of a cat; all RGB."""
    cat = skimage.data.chelsea()
    return tuple(
        Image.fromarray(np.ascontiguousarray(array))
        for array in (skimage.data.astronaut(), skimage.data.coffee(), cat[:, 100:260])
    )
