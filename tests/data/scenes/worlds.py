"""Scenes for tests, and what is said or painted wrongly in them."""

import dataclasses
import functools
import itertools
import math

from uae_jax.data.scenes import Claims, Scene, SceneObject, sample_scene
from uae_jax.data.scenes.claims import ATTRIBUTES
from uae_jax.data.scenes.graph import COLOURS, FILLS, POSITIONS, RADII_PX, SHAPES, SIDE_PX, SIZES, reach_px

VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS, "position": POSITIONS}


@functools.cache
def scenes(count: int, seed: int = 11) -> tuple[Scene, ...]:
    return tuple(sample_scene((seed, i)) for i in range(count))


def item(shape="circle", colour="red", size="medium", fill="solid", x=0.5, y=0.5) -> SceneObject:
    return SceneObject(shape, colour, size, fill, x, y, sum(RADII_PX[size]) / 2 / SIDE_PX)


def fits(scene: Scene, gap_px: float = 2.5) -> bool:
    """Whether objects keep apart and stay inside the image, so that a change of one is the only change there is."""
    discs = [(o.x * SIDE_PX, o.y * SIDE_PX, reach_px(o.shape, o.fill, o.radius * SIDE_PX)) for o in scene.objects]
    inside = all(r < min(x, y, SIDE_PX - x, SIDE_PX - y) for x, y, r in discs)
    return inside and all(
        math.hypot(a - c, b - d) >= r + s + gap_px for (a, b, r), (c, d, s) in itertools.combinations(discs, 2)
    )


def replaced(scene: Scene, index: int, **changes) -> Scene:
    objects = list(scene.objects)
    objects[index] = dataclasses.replace(objects[index], **changes)
    return dataclasses.replace(scene, objects=tuple(objects))


def misdescribed(claims: Claims, index: int, **changes) -> Claims:
    entities = list(claims.entities)
    entities[index] = dataclasses.replace(entities[index], **changes)
    return dataclasses.replace(claims, entities=tuple(entities))


def other_values(attribute: str, scene: Scene, index: int) -> list[str]:
    """Values that the object has not; of positions only those that no object has."""
    taken = {getattr(o, attribute) for o in scene.objects} if attribute == "position" else set()
    return [v for v in VALUES[attribute] if v != getattr(scene.objects[index], attribute) and v not in taken]


__all__ = ["ATTRIBUTES", "VALUES", "fits", "item", "misdescribed", "other_values", "replaced", "scenes"]
