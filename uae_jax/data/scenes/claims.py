"""What a caption claims: the structure between scenes and text.

Captions are written from claims and read back into claims; scores compare claims with a scene or with what was found in
an image. An attribute that is None is not claimed.
"""

import dataclasses

from uae_jax.data.scenes.graph import Scene, SceneObject

ATTRIBUTES = ("shape", "colour", "size", "fill", "position")
RELATIONS = ("left of", "right of", "above", "below")
# How far the centres must differ along the stated axis, as a fraction of the image's side. Sampled objects keep apart
# by three times this along their main axis or more, so that a relation stands when an object is painted a little off.
RELATION_SLACK = 0.05


@dataclasses.dataclass(frozen=True)
class Description:
    """What is said of one object; each attribute a canonical name or None."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    fill: str | None = None
    position: str | None = None

    def says(self, other: "Description") -> bool:
        """Whether all that `other` says is said here too."""
        return all(getattr(other, a) in (None, getattr(self, a)) for a in ATTRIBUTES)

    def without(self, *attributes: str) -> "Description":
        """The same, with these attributes unsaid."""
        return dataclasses.replace(self, **dict.fromkeys(attributes))


@dataclasses.dataclass(frozen=True)
class Relation:
    """`entities[subject]` is `kind` (of `RELATIONS`) `entities[other]`."""

    subject: int
    kind: str
    other: int


@dataclasses.dataclass(frozen=True)
class Claims:
    """All that a caption says.

    Attributes:
      entities: one description per object spoken of; "two red circles" are two equal ones.
      background: as in `graph.BACKGROUNDS`; other pairs of its tones can be claimed, too.
      total: how many objects the caption says there are in all.
      relations: between entities, by index.
      grammatical: whether the whole text follows the captions' grammar.
    """

    entities: tuple[Description, ...] = ()
    background: str | None = None
    total: int | None = None
    relations: tuple[Relation, ...] = ()
    grammatical: bool = True


def describe(item: SceneObject) -> Description:
    """Everything there is to say of an object by itself."""
    return Description(item.shape, item.colour, item.size, item.fill, item.position)


def claims_of(scene: Scene) -> Claims:
    """Everything true of a scene but relations."""
    return Claims(tuple(map(describe, scene.objects)), scene.background, len(scene.objects))


def main_relation(subject: SceneObject, other: SceneObject) -> str:
    """How two objects stand to each other along the axis in which they are further apart."""
    dx, dy = other.x - subject.x, other.y - subject.y
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def holds(kind: str, subject: SceneObject, other: SceneObject) -> bool:
    """Whether a relation is true: the centres differ that way by `RELATION_SLACK` or more."""
    dx, dy = other.x - subject.x, other.y - subject.y
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[kind] >= RELATION_SLACK
