"""Paints scenes: antialiased, the same bytes every time.

A pixel is `(1 - cover) * background + cover * ((1 - accent) * colour + accent * second)`, where `cover` is the share of
the pixel inside the object and `accent` the share of its stripes, dots or border. These take a second tone that stands
out from object and background alike: dark on light backgrounds, white on dark ones.
"""

import functools

import numpy as np

from uae_jax.data.scenes import shapes
from uae_jax.data.scenes.graph import SIDE_PX, Scene, SceneObject, border_px, reach_px

COLOUR_RGB = {
    "red": (220, 35, 40),
    "orange": (240, 130, 25),
    "yellow": (250, 222, 60),
    "green": (40, 155, 70),
    "cyan": (45, 195, 205),
    "blue": (40, 80, 225),
    "purple": (140, 50, 175),
    "pink": (245, 115, 190),
    "brown": (140, 85, 45),
}
BACKGROUND_RGB = {
    "white": (245, 245, 245),
    "gray": (160, 160, 160),
    "sky": (165, 205, 240),
    "sand": (225, 205, 150),
    "black": (20, 20, 24),
    "navy": (25, 35, 90),
}
DARK_BACKGROUNDS = ("black", "navy")
DARK_RGB, WHITE_RGB = (35, 35, 40), (245, 245, 245)
# Where stripes and dots lie: shifted to the right and down, in periods, and how far apart, as a multiple of usual.
Lattice = tuple[float, float, float]
CENTRED: Lattice = (0.0, 0.0, 1.0)


def render(scene: Scene, size: int = SIDE_PX) -> np.ndarray:
    """Paints a scene as uint8 [size, size, 3], RGB."""
    pixels = background_pixels(scene.background, size).copy()
    accent_rgb = accent_tone(scene.background)
    for item in scene.objects:
        rows, columns = box(item, size)
        cover, accent = layers(item.shape, item.fill, item.x, item.y, item.radius, rows, columns, size)
        colour = tone(item.colour)
        paint = colour if accent is None else colour + accent[..., None] * (accent_rgb - colour)
        patch = pixels[rows, columns]
        patch += cover[..., None] * (paint - patch)
    return np.rint(pixels).astype(np.uint8)


@functools.cache
def background_pixels(background: str, size: int = SIDE_PX) -> np.ndarray:
    """The background alone: f32[size, size, 3] in [0, 255]; shared, not to be changed."""
    first, second, fades = split_background(background)
    down = (np.arange(size, dtype=np.float32) + 0.5) / size
    share = down if fades else np.clip((down - 0.5) * size + 0.5, 0, 1)
    rgb = np.array(BACKGROUND_RGB[first]) + share[:, None] * np.subtract(BACKGROUND_RGB[second], BACKGROUND_RGB[first])
    pixels = np.repeat(rgb.astype(np.float32)[:, None], size, axis=1)
    pixels.flags.writeable = False
    return pixels


def split_background(background: str) -> tuple[str, str, bool]:
    """(upper tone, lower tone, is a gradient) of a background's name; a plain one has the same tone twice."""
    for word, fades in ((" over ", False), (" fading to ", True)):
        first, found, second = background.partition(word)
        if found:
            return first, second, fades
    return background, background, False


@functools.cache
def tone(colour: str) -> np.ndarray:
    """f32[3] of an object's colour."""
    return np.array(COLOUR_RGB[colour], np.float32)


@functools.cache
def accent_tone(background: str) -> np.ndarray:
    """f32[3] of stripes, dots and borders on this background."""
    return np.array(WHITE_RGB if split_background(background)[0] in DARK_BACKGROUNDS else DARK_RGB, np.float32)


def box(item: SceneObject, size: int) -> tuple[slice, slice]:
    """The rows and columns that an object touches."""
    reach = reach_px(item.shape, item.fill, item.radius * SIDE_PX) * size / SIDE_PX + 0.5
    x, y = item.x * size, item.y * size
    rows = slice(max(int(y - reach), 0), min(int(y + reach) + 1, size))
    return rows, slice(max(int(x - reach), 0), min(int(x + reach) + 1, size))


def layers(
    shape: str, fill: str, x: float, y: float, radius: float, rows: slice, columns: slice, size: int = SIDE_PX
) -> tuple[np.ndarray, np.ndarray | None]:
    """How an object covers the pixels of a window.

    Args:
      shape, fill: names.
      x, y, radius: fractions of the image's side.
      rows, columns: the window.
      size: pixels of the image's side.

    Returns:
      (cover, accent): f32[H, W] in [0, 1], and a share of the same kind that broadcasts to it, or None where solid.
    """
    across, down = offsets(x, y, rows, columns, size)
    distance = outline(shape, across, down, radius * size)
    return pattern(fill, distance, across, down, radius * size, size / SIDE_PX)


def offsets(x: float, y: float, rows: slice, columns: slice, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(f32[W], f32[H]) to the right of and below a centre, in pixels."""
    across = np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - x * size)
    return across, np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - y * size)


def outline(shape: str, across: np.ndarray, down: np.ndarray, radius_px: float) -> np.ndarray:
    """Signed distance f32[H, W] from a shape's outline at these offsets, in pixels."""
    radius_px = np.float32(radius_px)
    return shapes.sample(shape, across / radius_px, down / radius_px) * radius_px


def pattern(
    fill: str,
    distance: np.ndarray,
    across: np.ndarray,
    down: np.ndarray,
    radius_px: float,
    scale: float,
    lattice: Lattice = CENTRED,
) -> tuple[np.ndarray, np.ndarray | None]:
    """`layers` from the signed distance f32[H, W] and the offsets f32[W], f32[H] from the centre, in pixels.

    Scenes have their stripes and dots on `CENTRED`; another `lattice` is for what others painted.
    """
    if fill == "outlined":
        border = border_px(radius_px / scale) * scale
        return _inside(distance - np.float32(border)), _inside(-distance)
    cover = _inside(distance)
    if fill == "solid":
        return cover, None
    right, below, stretch = map(np.float32, lattice)
    period = np.float32(3.0 * scale + 0.36 * radius_px) * stretch
    from_row = _to_lattice(down - below * period, period)[:, None]
    if fill == "striped":
        return cover, _inside(from_row - np.float32(0.22) * period)
    from_column = _to_lattice(across - right * period, period)
    return cover, _inside(np.sqrt(from_row**2 + from_column**2) - np.float32(0.3) * period)


def _inside(distance: np.ndarray) -> np.ndarray:
    """Share of a pixel inside an edge, from its centre's signed distance in pixels."""
    return np.minimum(np.maximum(np.float32(0.5) - distance, np.float32(0)), np.float32(1))


def _to_lattice(offset: np.ndarray, period: np.float32) -> np.ndarray:
    """Distance to the nearest odd multiple of half a period, so that the centre itself keeps the main colour."""
    turns = offset / period
    return np.abs(turns - np.floor(turns) - np.float32(0.5)) * period
