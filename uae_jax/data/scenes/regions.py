"""What each part of an image shows, in words: labels to learn seeing from, where captions say too little for it."""

import numpy as np

from uae_jax.data.scenes.graph import SIDE_PX, Scene
from uae_jax.data.scenes.render import box, layers, split_background

REGIONS, PLACED_REGIONS = "regions", "placed_regions"  # caption fields
SEPARATOR = ";"
ROWS = 4  # and as many columns
_LEAST = 3.0  # covered pixels of a region that make an object worth naming


def write_regions(scene: Scene, placed: bool = False) -> str:
    """Names what fills each square of a 4x4 grid, row by row: "small dotted red star;white;sky;...".

    An object is named in every region where it covers more than any other, and at least three pixels of the 64 px
    image; elsewhere stands the background's tone, upper or lower.

    Args:
      scene: what is named.
      placed: add where in the image the object stands: "small dotted red star top left".
    """
    labels = [[split_background(scene.background)[int(2 * row >= ROWS)]] * ROWS for row in range(ROWS)]
    most = np.full((ROWS, ROWS), _LEAST)
    for item in scene.objects:
        rows, columns = box(item, SIDE_PX)
        cover = np.zeros((SIDE_PX, SIDE_PX), np.float32)
        cover[rows, columns] = layers(item.shape, item.fill, item.x, item.y, item.radius, rows, columns)[0]
        side = SIDE_PX // ROWS
        covered = cover.reshape(ROWS, side, ROWS, side).sum((1, 3))
        for row, column in np.argwhere(covered > most):
            label = f"{item.size} {item.fill} {item.colour} {item.shape}"
            labels[row][column] = f"{label} {item.position}" if placed else label
        most = np.maximum(most, covered)
    return SEPARATOR.join(label for row in labels for label in row)
