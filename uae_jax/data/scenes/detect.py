"""Finds the objects of a painted scene without any learned part.

The background is the named one that most pixels agree with; what differs from it falls into connected parts; each part
is explained by every shape and fill in turn, rendered where the part lies, and the best explanation says what it is.
Stripes and dots may begin anywhere: whoever paints them need not begin where scenes do.
The colour is fitted, so that a painter's tint costs nothing; it is named after the nearest of the palette.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
import scipy  # its parts load when they are used, see `matching`

from uae_jax.data.scenes import shapes
from uae_jax.data.scenes.graph import (
    BACKGROUNDS,
    RADII_PX,
    SHAPES,
    SIDE_PX,
    SIZES,
    Scene,
    SceneObject,
    border_px,
)
from uae_jax.data.scenes.render import (
    CENTRED,
    COLOUR_RGB,
    Lattice,
    accent_tone,
    background_pixels,
    offsets,
    outline,
    pattern,
    tone,
)

# Distances between colours are Euclidean over RGB in [0, 255]. No object or second tone comes nearer to its background
# than 90, so that the limits leave room for noise (below) and for faint painting (above).
_EDGE, _CORE = 40.0, 65.0  # a part consists of pixels beyond the first limit, some of them beyond the second
_OUTLIER = 60.0  # a background pixel that differs more counts as covered
_LEAST_AREA = 9.0  # pixels of a 64 px image; the smallest shape has 40
_MARGIN = 2  # pixels round a part that its explanation must get right, too
_TRIED = 4  # explanations that are moved and scaled to fit; the best alone where it is clear:
_CLEAR = 2.0  # its error is smaller than all others by more than this factor
_STEPS = (0.6, 0.6, 0.3, 0.15)  # pixels by which an explanation is moved to fit
_GOOD = 150.0  # squared error per pixel; below it nothing better is looked for than the lattice of scenes
_Look = tuple[str, Lattice]  # a fill, and where its stripes or dots lie
_OUTLINED: list[_Look] = [("outlined", CENTRED)]
_CENTRED: list[_Look] = [(fill, CENTRED) for fill in ("solid", "striped", "dotted")]
_SHIFTS = [("striped", (0.0, down / 6)) for down in range(6)] + [
    ("dotted", (right / 4, down / 4)) for right in range(4) for down in range(4)
]
_SHIFTED: list[_Look] = [(fill, (*shift, 1.0)) for fill, shift in _SHIFTS if any(shift)]
_STRETCHED: list[_Look] = [(fill, (*shift, stretch)) for fill, shift in _SHIFTS for stretch in (0.85, 1.15)]
_SIZE_LIMITS = tuple((RADII_PX[a][1] + RADII_PX[b][0]) / 2 for a, b in itertools.pairwise(SIZES))


@dataclasses.dataclass(frozen=True)
class _Part:
    """A connected part and its surroundings.

    Attributes:
      rows, columns: the window.
      excess: f64[H*W, 3], the image less the background; 0 where another part is.
      contrast: f64[H*W, 3], the background less the second tone; 0 where another part is.
      weight: f64[H*W], 0 where another part is, else 1.
      second: f64[3] tone of stripes, dots and borders.
      size: side of the whole image.
    """

    rows: slice
    columns: slice
    excess: np.ndarray
    contrast: np.ndarray
    weight: np.ndarray
    second: np.ndarray
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the window."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @functools.cached_property
    def products(self) -> tuple[np.ndarray, ...]:
        """Per pixel, f64[H*W]: excess², excess·contrast, contrast², excess·second, contrast·second."""
        p, q, s = self.excess, self.contrast, self.second
        return (p * p).sum(1), (p * q).sum(1), (q * q).sum(1), p @ s, q @ s


def detect(image: np.ndarray) -> Scene:
    """Finds background and objects of a painted scene.

    Args:
      image: uint8 [S, S, 3]; blurred and noisy ones are fine.

    Returns:
      A scene, objects from the largest to the smallest; what is no object of this world is named after the most
      similar one.

    Raises:
      ValueError: if the image is of another type or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape[0] != image.shape[1]:
        raise ValueError(f"image is {image.dtype}{list(image.shape)}, wanted uint8 [S, S, 3]")
    pixels = image.astype(np.float32)
    background, ground = _background(pixels)
    second = accent_tone(background)
    found = [_explain(part) for part in _parts(pixels, ground, second)]
    return Scene(background, tuple(sorted(found, key=lambda item: -item.radius)))


@functools.cache
def _grounds(size: int) -> np.ndarray:
    return np.stack([background_pixels(name, size) for name in BACKGROUNDS])


def _background(pixels: np.ndarray) -> tuple[str, np.ndarray]:
    """The name of the background, and its pixels as the painter tinted them."""
    size = pixels.shape[0]
    grounds = _grounds(size)
    apart = np.linalg.norm(pixels - grounds, axis=-1)
    best = int(np.minimum(apart, _OUTLIER).mean((1, 2)).argmin())
    bare = apart[best] < _OUTLIER
    tint = np.median((pixels - grounds[best])[bare], axis=0) if bare.any() else 0.0
    return BACKGROUNDS[best], grounds[best] + tint


def _parts(pixels: np.ndarray, ground: np.ndarray, second: np.ndarray) -> list[_Part]:
    """Connected parts that differ from the background, by two limits: faint pixels count only beside clear ones."""
    size = pixels.shape[0]
    apart = np.linalg.norm(pixels - ground, axis=-1)
    labels, count = scipy.ndimage.label(apart > _EDGE, structure=np.ones((3, 3)))
    parts = []
    if not count:
        return parts
    numbers = np.arange(1, count + 1)
    strongest = scipy.ndimage.maximum(apart, labels, numbers)
    areas = scipy.ndimage.sum_labels(np.ones_like(apart), labels, numbers)
    kept = (strongest > _CORE) & (areas >= _LEAST_AREA * (size / SIDE_PX) ** 2)
    for number, window in zip(numbers, scipy.ndimage.find_objects(labels), strict=True):
        if not kept[number - 1]:
            continue
        rows, columns = (slice(max(s.start - _MARGIN, 0), min(s.stop + _MARGIN, size)) for s in window)
        labelled = labels[rows, columns]
        others = (labelled != number) & (labelled > 0)
        clear = ~scipy.ndimage.binary_dilation(others, np.ones((3, 3)))
        excess = ((pixels - ground)[rows, columns] * clear[..., None]).reshape(-1, 3).astype(np.float64)
        contrast = ((ground - second)[rows, columns] * clear[..., None]).reshape(-1, 3).astype(np.float64)
        parts.append(_Part(rows, columns, excess, contrast, clear.ravel().astype(float), second.astype(float), size))
    return parts


def _explain(part: _Part) -> SceneObject:
    """The object that, rendered, comes nearest to a part; rendered sharp and soft, whichever is nearer."""
    found, softened = _candidates(part)
    best = {candidate[1:3]: candidate for candidate in sorted(found, reverse=True)}  # of each shape and fill
    order = sorted(best.values())[:_TRIED]
    chosen = [candidate for candidate in order if candidate[0] <= _CLEAR * order[0][0]]
    error, shape, fill, lattice, pose = min(_refine(part, *candidate, softened) for candidate in chosen)
    looks = [(fill, lattice)]
    if error > _GOOD and fill != "outlined":
        looks += _CENTRED + _SHIFTED + _STRETCHED
    errors, colours = _try(part, shape, looks, pose, softened)
    fill, colour = looks[errors.argmin()][0], _nearest_colour(colours[errors.argmin()])
    x, y, radius = (float(value) / part.size for value in pose)
    size = SIZES[sum(radius * SIDE_PX > limit for limit in _SIZE_LIMITS)]
    return SceneObject(shape, colour, size, fill, x, y, radius)


def _candidates(part: _Part) -> tuple[list[tuple], bool]:
    """[(error, shape, fill, lattice, pose)], and whether soft ones come nearer than sharp ones."""
    poses = _poses(part)
    groups = [(shape, looks, poses[shape, looks is _OUTLINED]) for shape in SHAPES for looks in (_CENTRED, _OUTLINED)]
    masks = [_masks(part, shape, pose, looks) for shape, looks, pose in groups]
    sharp = np.concatenate([_misfit(part, *each)[0] for each in masks])
    soft = np.concatenate([_misfit(part, *map(_soften, each))[0] for each in masks])
    softened = bool(soft.min() < sharp.min())
    errors = (soft if softened else sharp).tolist()
    if min(errors) > _GOOD:
        for shape in SHAPES:
            groups.append((shape, _SHIFTED, poses[shape, False]))
            errors += _try(part, shape, _SHIFTED, poses[shape, False], softened)[0].tolist()
    tried = [(shape, *look, pose) for shape, looks, pose in groups for look in looks]
    return [(error, *candidate) for error, candidate in zip(errors, tried, strict=True)], softened


def _poses(part: _Part) -> dict[tuple[str, bool], tuple[float, float, float]]:
    """(shape, has a border) -> (x, y, radius) in pixels at which its silhouette has the part's area and centre."""
    area, x, y = _moments(part)
    poses = {}
    for shape in SHAPES:
        for outlined in (False, True):
            areas, radii, (shift_x, shift_y) = _geometry(shape, outlined)
            radius = float(np.interp(area * (SIDE_PX / part.size) ** 2, areas, radii)) * part.size / SIDE_PX
            poses[shape, outlined] = x - shift_x * radius, y - shift_y * radius, radius
    return poses


def _moments(part: _Part) -> tuple[float, float, float]:
    """Area in pixels and centre of a part's silhouette, with the share that edge pixels have in it."""
    apart = np.sqrt(part.products[0]).reshape(part.shape)
    around = scipy.ndimage.maximum_filter(apart, 3)
    cover = np.where(around > _CORE, np.clip(apart / np.maximum(around, 1e-3), 0, 1), 0)
    inside = scipy.ndimage.binary_erosion(scipy.ndimage.binary_fill_holes(apart > _EDGE), np.ones((3, 3)))
    cover = np.where(inside, 1.0, cover)
    area = float(cover.sum())
    down = np.arange(part.rows.start, part.rows.stop) + 0.5
    across = np.arange(part.columns.start, part.columns.stop) + 0.5
    return area, float((cover.sum(0) * across).sum()) / area, float((cover.sum(1) * down).sum()) / area


@functools.cache
def _geometry(shape: str, outlined: bool) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """(areas, radii that have them, centroid in radii) of a shape's silhouette, in pixels of a 64 px image."""
    table = shapes.distances(shape)
    ticks = np.linspace(-shapes.EXTENT, shapes.EXTENT, len(table))
    cell = (ticks[1] - ticks[0]) ** 2
    radii = np.linspace(2, 24, 89)
    edges = [border_px(radius) / radius if outlined else 0.0 for radius in radii]
    covers = [np.clip(0.5 - (table - edge) / (ticks[1] - ticks[0]), 0, 1) for edge in edges]
    areas = np.array([cover.sum() * cell * radius**2 for cover, radius in zip(covers, radii, strict=True)])
    middle = covers[24]  # radius 8
    return (
        areas,
        radii,
        (float((middle.sum(0) * ticks).sum() / middle.sum()), float((middle.sum(1) * ticks).sum() / middle.sum())),
    )


def _masks(
    part: _Part, shape: str, pose: tuple[float, float, float], looks: Sequence[_Look]
) -> tuple[np.ndarray, np.ndarray]:
    """Of an object in the window, f32[1, H, W] cover, the same for all these looks, and f32[K, H, W] by main colour."""
    x, y, radius = pose
    across, down = offsets(x / part.size, y / part.size, part.rows, part.columns, part.size)
    distance = outline(shape, across, down, radius)
    mains = []
    for fill, lattice in looks:
        cover, accent = pattern(fill, distance, across, down, radius, part.size / SIDE_PX, lattice)
        mains.append(cover if accent is None else cover * (1 - accent))
    return cover[None], np.stack(mains)


def _soften(masks: np.ndarray) -> np.ndarray:
    """Spreads [K, H, W] by (1, 2, 1) / 4 along both axes; beyond the edge it goes on as at the edge."""
    down = 2 * masks
    down[:, 1:] += masks[:, :-1]
    down[:, :-1] += masks[:, 1:]
    down[:, 0] += masks[:, 0]
    down[:, -1] += masks[:, -1]
    both = 2 * down
    both[:, :, 1:] += down[:, :, :-1]
    both[:, :, :-1] += down[:, :, 1:]
    both[:, :, 0] += down[:, :, 0]
    both[:, :, -1] += down[:, :, -1]
    return both / 16


def _misfit(part: _Part, cover: np.ndarray, main: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(squared error per pixel f64[K], fitted colours f64[K, 3]) of explanations, cover [1, H, W], main [K, H, W].

    With cover c, main cover m and colour u, the error at a pixel is |excess + c contrast + m second - m u|²; the sums
    are multiplied out, so that only products of masks with fixed vectors are left.
    """
    pp, pq, qq, ps, qs = part.products
    c, m = (mask.reshape(len(mask), -1) * part.weight for mask in (cover, main))
    norm = (m * m).sum(1)
    both = m @ part.excess + (m * c) @ part.contrast + norm[:, None] * part.second
    colours = np.clip(both / np.maximum(norm, 1e-3)[:, None], 0, 255)
    fixed = pp.sum() + 2 * c @ pq + (c * c) @ qq + 2 * m @ ps + 2 * (c * m) @ qs + norm * (part.second @ part.second)
    errors = fixed - 2 * (both * colours).sum(1) + norm * (colours * colours).sum(1)
    return errors / part.weight.sum(), colours


def _try(part: _Part, shape: str, looks: Sequence[_Look], pose: tuple, softened: bool) -> tuple[np.ndarray, np.ndarray]:
    """`_misfit` of a shape with each look."""
    masks = _masks(part, shape, pose, looks)
    return _misfit(part, *(map(_soften, masks) if softened else masks))


def _refine(part: _Part, error: float, shape: str, fill: str, lattice: Lattice, pose: tuple, softened: bool) -> tuple:
    """Moves and scales an explanation to where it fits best."""
    for step in _STEPS:
        for axis in range(3):
            for moved in (-step, step):
                candidate = tuple(value + moved * (i == axis) for i, value in enumerate(pose))
                tried = float(_try(part, shape, [(fill, lattice)], candidate, softened)[0][0])
                if tried < error:
                    error, pose = tried, candidate
                    break
    return error, shape, fill, lattice, pose


def _nearest_colour(rgb: np.ndarray) -> str:
    return min(COLOUR_RGB, key=lambda name: float(((tone(name) - rgb) ** 2).sum()))
