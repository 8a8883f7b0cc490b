"""The eight shapes, as tables of signed distance.

A shape is given once, as an outline of radius about 1 round the origin (x to the right, y down). Its signed distance
(negative inside) is tabulated on a square lattice; rendering and detecting only interpolate that table, so that every
shape costs the same and edges are antialiased from their exact distance.
"""

import functools

import numpy as np

EXTENT = 2.0  # the table covers [-EXTENT, EXTENT] in both axes, in units of the radius
_STEPS = 160  # lattice cells per side
_CIRCLE = 0.95


def _star() -> np.ndarray:
    angle = np.pi * (np.arange(10) / 5 - 0.5)
    reach = np.where(np.arange(10) % 2 == 0, 1.18, 0.52)
    return np.stack([reach * np.cos(angle), reach * np.sin(angle) + 0.06], -1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 15.6, (y - 1.5) / 14.2], -1)


def _moon() -> np.ndarray:
    """A disc less a smaller disc to its right, both through the two horns."""
    outer, inner, shift = 1.06, 0.86, 0.62
    horn_x = (outer**2 - inner**2 + shift**2) / (2 * shift)
    horn_y = np.sqrt(outer**2 - horn_x**2)
    begin, turn = np.arctan2(horn_y, horn_x), np.arctan2(horn_y, horn_x - shift)
    far = np.linspace(begin, 2 * np.pi - begin, 48)
    near = np.linspace(2 * np.pi - turn, turn, 32)[1:-1]
    outline = [outer * np.stack([np.cos(far), np.sin(far)], -1)]
    outline.append(inner * np.stack([np.cos(near), np.sin(near)], -1) + [shift, 0])
    return np.concatenate(outline) + np.array([0.28, 0])


def _cross() -> np.ndarray:
    a, b = 0.37, 1.06
    corners = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.array(corners)


_OUTLINES = {
    "circle": lambda: np.array([(0.0, 0.0)]),  # distance to the centre less the radius
    "square": lambda: 0.85 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1.0)]),
    "triangle": lambda: np.array([(0, -1.05), (1.08, 0.8), (-1.08, 0.8)]),
    "diamond": lambda: np.array([(0, -1.2), (0.92, 0), (0, 1.2), (-0.92, 0)]),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
}
SHAPES: tuple[str, ...] = tuple(_OUTLINES)


@functools.cache
def reach(shape: str) -> float:
    """How far a shape of radius 1 reaches from its origin."""
    return _CIRCLE if shape == "circle" else float(np.linalg.norm(_OUTLINES[shape](), axis=-1).max())


@functools.cache
def distances(shape: str) -> np.ndarray:
    """Signed distance from the outline of a shape of radius 1: f32[161, 161] over [-EXTENT, EXTENT]², row = y."""
    ticks = np.linspace(-EXTENT, EXTENT, _STEPS + 1)
    x, y = np.meshgrid(ticks, ticks)
    if shape == "circle":
        return (np.hypot(x, y) - _CIRCLE).astype(np.float32)
    corners = _OUTLINES[shape]()
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ey:  # even-odd rule: does a ray to the right cross this edge?
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def sample(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance on the grid of columns `x` f32[W] and rows `y` f32[H], in radii: f32[H, W], bilinear."""
    table = distances(shape)
    scale, last = _STEPS / (2 * EXTENT), _STEPS - 1e-3
    row, column = np.clip((y + EXTENT) * scale, 0, last), np.clip((x + EXTENT) * scale, 0, last)
    i, j = row.astype(np.int64), column.astype(np.int64)
    rows = table[i]
    rows = rows + (row - i).astype(np.float32)[:, None] * (table[i + 1] - rows)
    left = rows[:, j]
    return left + (column - j).astype(np.float32) * (rows[:, j + 1] - left)
