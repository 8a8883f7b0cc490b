"""Scenes: a background and one to six objects, and how they are drawn at random.

Lengths are fractions of the image's side, so that a scene can be painted at any size; the limits below are stated in
pixels of the 64 px image. What sampling promises, and detection and captions rely upon:

- objects keep a gap of `GAP_PX` between their outlines and stay inside the image;
- every ninth of the image (`POSITIONS`) holds the centre of at most one object, `REGION_MARGIN_PX` or more inside it,
  so that an object's position tells it from all others, and a small error of position does not change it.
"""

import dataclasses
import functools

import numpy as np

from uae_jax.data.scenes import shapes
from uae_jax.data.scenes.draws import Draws, scene_rng
from uae_jax.data.scenes.shapes import SHAPES

SIDE_PX = 64  # of the image that all lengths in pixels refer to
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown")
SIZES = ("small", "medium", "large")
FILLS = ("solid", "striped", "dotted", "outlined")
POSITIONS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
PLAIN_BACKGROUNDS = ("white", "gray", "sky", "sand", "black", "navy")
# "a over b": upper and lower half; "a fading to b": from the top row to the bottom row.
TWO_TONE_BACKGROUNDS = (
    "sky over sand",
    "white over gray",
    "gray over sky",
    "navy over black",
    "white fading to gray",
    "sky fading to white",
    "sand fading to sky",
    "navy fading to black",
)
BACKGROUNDS = PLAIN_BACKGROUNDS + TWO_TONE_BACKGROUNDS
RADII_PX = {"small": (5.0, 6.0), "medium": (8.2, 9.6), "large": (12.4, 14.0)}
GAP_PX = 3.0
REGION_MARGIN_PX = 1.5


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
      shape, colour, size, fill: of `SHAPES`, `COLOURS`, `SIZES`, `FILLS`.
      x, y: centre in [0, 1], from the left and from the top.
      radius: fraction of the image's side.
    """

    shape: str
    colour: str
    size: str
    fill: str
    x: float
    y: float
    radius: float

    @property
    def position(self) -> str:
        """The ninth of the image in which the centre lies, of `POSITIONS`."""
        return position_of(self.x, self.y)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background (of `BACKGROUNDS`) and objects; sampled ones from large to small, those of a size as one reads."""

    background: str
    objects: tuple[SceneObject, ...]


@dataclasses.dataclass(frozen=True)
class SceneConfig:
    """What scenes are drawn; weights need not sum to one.

    Attributes:
      counts: weights of 1 to 6 objects.
      sizes: weights of small, medium and large. Where the image is too full for a size, the next smaller is taken.
      fills: weights of `FILLS`.
      repeat: probability that an object takes shape and colour of an earlier one.
      twin: probability that a repeated object takes size and fill, too.
      two_tone: probability of a two-tone background.
    """

    counts: tuple[float, ...] = (0.2, 0.22, 0.2, 0.16, 0.12, 0.1)
    sizes: tuple[float, ...] = (0.3, 0.4, 0.3)
    fills: tuple[float, ...] = (0.52, 0.16, 0.16, 0.16)
    repeat: float = 0.25
    twin: float = 0.5
    two_tone: float = 0.4

    def __post_init__(self):
        for name, length in (("counts", 6), ("sizes", len(SIZES)), ("fills", len(FILLS))):
            weights = getattr(self, name)
            object.__setattr__(self, name, tuple(weights))
            if len(weights) != length or min(weights) < 0 or not sum(weights) > 0:
                raise ValueError(f"{name}={weights}, wanted {length} weights of 0 or more, not all 0")
        for name in ("repeat", "twin", "two_tone"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}, wanted a probability in [0, 1]")


def position_of(x: float, y: float) -> str:
    """Names the ninth of the image that holds a point of [0, 1]²; points outside count for the nearest."""
    return POSITIONS[3 * min(max(int(3 * y), 0), 2) + min(max(int(3 * x), 0), 2)]


def border_px(radius_px: float) -> float:
    """Width of an outlined object's border, which lies outside its shape."""
    return 1.2 + 0.05 * radius_px


def reach_px(shape: str, fill: str, radius_px: float) -> float:
    """How far an object reaches from its centre, border included."""
    return shapes.reach(shape) * radius_px + (border_px(radius_px) if fill == "outlined" else 0.0)


def sample_scene(rng: np.random.Generator | tuple[int, int], config: SceneConfig = SceneConfig()) -> Scene:
    """Draws a scene.

    Args:
      rng: a generator, or (seed, index) for `scene_rng`.
      config: what is drawn how often.
    """
    rng = scene_rng(*rng) if isinstance(rng, tuple) else rng
    draw = Draws(rng)
    backgrounds = TWO_TONE_BACKGROUNDS if draw.uniform() < config.two_tone else PLAIN_BACKGROUNDS
    background = draw.choice(backgrounds)
    count = 1 + draw.weighted(_cumulated(config.counts))
    looks, levels = _looks(draw, count, config)
    for _ in range(8):
        objects = _place(draw, looks, levels)
        if objects is not None:
            return Scene(background, _ordered(objects))
        levels = [max(level - 1, 0) for level in levels]
    return Scene(background, _ordered(_grid(draw, looks)))


def _ordered(objects: tuple[SceneObject, ...]) -> tuple[SceneObject, ...]:
    """From large to small, and among those of one size as one reads: an order that can be told from the image."""
    return tuple(sorted(objects, key=lambda item: (-SIZES.index(item.size), POSITIONS.index(item.position))))


@functools.lru_cache(maxsize=64)
def _cumulated(weights: tuple[float, ...]) -> tuple[float, ...]:
    sums = np.cumsum(weights) / np.sum(weights)
    return (*sums[:-1].tolist(), 1.0)


def _looks(draw: Draws, count: int, config: SceneConfig) -> tuple[list[tuple[str, str, str]], list[int]]:
    """(shape, colour, fill) and the index of the size, per object."""
    looks, levels = [], []
    for i in range(count):
        shape, colour = draw.choice(SHAPES), draw.choice(COLOURS)
        fill, level = FILLS[draw.weighted(_cumulated(config.fills))], draw.weighted(_cumulated(config.sizes))
        if i and draw.uniform() < config.repeat:
            other = int(draw.uniform() * i)
            shape, colour = looks[other][:2]
            if draw.uniform() < config.twin:
                fill, level = looks[other][2], levels[other]
        looks.append((shape, colour, fill))
        levels.append(level)
    return looks, levels


def _place(draw: Draws, looks: list, levels: list[int]) -> tuple[SceneObject, ...] | None:
    """Finds room for all objects, largest first; None where there is none."""
    free, placed, objects = list(range(9)), [], []
    for level, i in sorted(zip(levels, range(len(looks)), strict=True), reverse=True):
        shape, colour, fill = looks[i]
        found = None
        while found is None and level >= 0:
            radius = draw.between(*RADII_PX[SIZES[level]])
            reach = reach_px(shape, fill, radius)
            found = _room(draw, free, placed, reach)
            level -= found is None
        if found is None:
            return None
        cell, x, y = found
        free.remove(cell)
        placed.append((x, y, reach))
        objects.append(SceneObject(shape, colour, SIZES[level], fill, x / SIDE_PX, y / SIDE_PX, radius / SIDE_PX))
    return tuple(objects)


def _room(draw: Draws, free: list[int], placed: list, reach: float) -> tuple[int, float, float] | None:
    """A free region and a centre (pixels) in it, at which a disc of this reach touches neither border nor objects."""
    for cell in draw.shuffled(free):
        low_x, high_x = _span(cell % 3, reach)
        low_y, high_y = _span(cell // 3, reach)
        if low_x > high_x or low_y > high_y:
            continue
        for _ in range(2):
            x, y = draw.between(low_x, high_x), draw.between(low_y, high_y)
            if all((x - a) ** 2 + (y - b) ** 2 >= (reach + other + GAP_PX) ** 2 for a, b, other in placed):
                return cell, x, y
    return None


def _span(third: int, reach: float) -> tuple[float, float]:
    """Where a centre may lie along one axis, in pixels: (low, high), low above high where there is no room."""
    low, high = third * SIDE_PX / 3 + REGION_MARGIN_PX, (third + 1) * SIDE_PX / 3 - REGION_MARGIN_PX
    return max(low, reach), min(high, SIDE_PX - reach)


def _grid(draw: Draws, looks: list) -> tuple[SceneObject, ...]:
    """The smallest size in the middle of the regions, where there always is room."""
    radius = RADII_PX["small"][0]
    cells = draw.shuffled(list(range(9)))[: len(looks)]
    return tuple(
        SceneObject(shape, colour, "small", fill, (cell % 3 + 0.5) / 3, (cell // 3 + 0.5) / 3, radius / SIDE_PX)
        for (shape, colour, fill), cell in zip(looks, cells, strict=True)
    )
