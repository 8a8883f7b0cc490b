"""Scores painted images against a scene or a caption, by the objects that are found in them, in GenEval's manner."""

import collections
import dataclasses

import numpy as np

from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, claims_of, describe
from uae_jax.data.scenes.detect import detect
from uae_jax.data.scenes.graph import Scene
from uae_jax.data.scenes.matching import is_true, match
from uae_jax.data.scenes.parse import parse_caption


@dataclasses.dataclass(frozen=True)
class PaintingScore:
    """How much of what was asked for was painted; everything in [0, 1], 1 where nothing of the kind was asked for.

    What was asked for is first matched with the objects found, `matching.match`, as many as there are of both.

    Attributes:
      count: the smaller over the larger of the numbers of objects asked for and found.
      shape, colour, size, fill, position: of the values asked for of the matched objects, the share that was painted,
        on whichever object: the overlap of the two multisets. 0 where no object was found.
      binding: of these painted values, the share that sits on the right object. Two objects that exchanged their
        colours lower this and nothing else.
      relation: the share of relations asked for that hold between the matched objects.
      background: 1 if it was painted as asked for, else 0.
    """

    count: float
    shape: float
    colour: float
    size: float
    fill: float
    position: float
    binding: float
    relation: float
    background: float

    @property
    def accuracy(self) -> float:
        """1 if all is as asked for and nothing else is there, else 0."""
        return float(all(value == 1 for value in dataclasses.astuple(self)))


def score_painting(image: np.ndarray | Scene, scene: Scene) -> PaintingScore:
    """Compares a painting with all there is in a scene but relations.

    Args:
      image: u8[S, S, 3], or what `detect` found in it: looking takes most of the time, and serves several questions.
      scene: what was to be painted.
    """
    return judge(claims_of(scene), _found(image))


def score_painting_of_caption(image: np.ndarray | Scene, caption: str | Claims) -> PaintingScore:
    """Compares a painting, as in `score_painting`, with what a caption asks for.

    What the caption leaves open may be painted in any way; objects that it does not mention may not, unless it states a
    larger number of them ("there are three objects").
    """
    return judge(parse_caption(caption) if isinstance(caption, str) else caption, _found(image))


def _found(image: np.ndarray | Scene) -> Scene:
    return image if isinstance(image, Scene) else detect(image)


def judge(claims: Claims, found: Scene) -> PaintingScore:
    """Compares what was asked for with what was found."""
    matched = match(claims, found.objects, loose=True)
    pairs = [(e, describe(found.objects[j])) for e, j in zip(claims.entities, matched, strict=True) if j is not None]
    scores: dict[str, float] = {}
    bound = painted = 0
    for attribute in ATTRIBUTES:
        values = [(getattr(said, attribute), getattr(fact, attribute)) for said, fact in pairs]
        values = [(wanted, got) for wanted, got in values if wanted is not None]
        wanted, got = (collections.Counter(side) for side in zip(*values, strict=True)) if values else ({}, {})
        overlap = sum(min(number, got[value]) for value, number in wanted.items())
        asked = any(getattr(entity, attribute) is not None for entity in claims.entities)
        scores[attribute] = overlap / len(values) if values else float(not asked or bool(pairs))
        painted += overlap
        bound += sum(wanted == got for wanted, got in values)
    true = sum(is_true(relation, matched, found.objects) for relation in claims.relations)
    return PaintingScore(
        count=_count(claims, len(found.objects)),
        **scores,
        binding=bound / painted if painted else 1.0,
        relation=true / len(claims.relations) if claims.relations else 1.0,
        background=float(claims.background in (None, found.background)),
    )


def _count(claims: Claims, found: int) -> float:
    wanted = claims.total if claims.total is not None else len(claims.entities)
    return min(wanted, found) / max(wanted, found) if max(wanted, found) else 1.0
