"""Scores captions against the scene they describe, in the categories of DPG-Bench: what was claimed, and is it so?"""

import dataclasses

from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, describe
from uae_jax.data.scenes.graph import Scene
from uae_jax.data.scenes.matching import agreements, is_true, match
from uae_jax.data.scenes.parse import parse_caption


@dataclasses.dataclass(frozen=True)
class Tally:
    """Counts of one category; tallies of many captions add up to pooled scores.

    Attributes:
      right, claimed: claims that are true, of all claims.
      found, present: facts that some claim states, of all facts of the scene.
    """

    right: int = 0
    claimed: int = 0
    found: int = 0
    present: int = 0

    @property
    def precision(self) -> float:
        """right / claimed; 1 where nothing was claimed."""
        return self.right / self.claimed if self.claimed else 1.0

    @property
    def recall(self) -> float:
        """found / present; 1 where there was nothing to find."""
        return self.found / self.present if self.present else 1.0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class CaptionScore:
    """What one caption (or a sum of them) gets right.

    Claimed entities are first matched with the scene's objects, `matching.match`. Then:

    Attributes:
      entity: claimed entities; right and found are those with an object. An object left out lowers recall, an invented
        one precision.
      shape, colour, size, fill, position: each claimed value is right if the matched object has it; a value claimed of
        an entity without an object is wrong. Every object has one value each to be found, mentioned or not.
      relation: each claimed relation is right if it holds between the matched objects (`claims.holds`); facts are the
        objects of a scene of two or more, found if they take part in a right relation.
      count: the claimed number of objects in all. Numbers of groups ("two red circles") count as entities.
      background: the claimed background, right if all of it is.
    """

    entity: Tally = Tally()
    shape: Tally = Tally()
    colour: Tally = Tally()
    size: Tally = Tally()
    fill: Tally = Tally()
    position: Tally = Tally()
    relation: Tally = Tally()
    count: Tally = Tally()
    background: Tally = Tally()

    @property
    def attribute(self) -> Tally:
        """The five attributes together."""
        return sum((getattr(self, name) for name in ATTRIBUTES), Tally())

    @property
    def perfect(self) -> bool:
        """Whether every precision and every recall is 1."""
        tallies = [getattr(self, field.name) for field in dataclasses.fields(self)]
        return all(tally.precision == tally.recall == 1 for tally in tallies)

    def __add__(self, other: "CaptionScore") -> "CaptionScore":
        names = [field.name for field in dataclasses.fields(self)]
        return CaptionScore(**{name: getattr(self, name) + getattr(other, name) for name in names})


def score_caption(caption: str | Claims, scene: Scene) -> CaptionScore:
    """Compares a caption, or claims already read, with a scene."""
    claims = parse_caption(caption) if isinstance(caption, str) else caption
    matched = match(claims, scene.objects)
    number, pairs = len(scene.objects), sum(j is not None for j in matched)
    tallies = {"entity": Tally(pairs, len(claims.entities), pairs, number)}
    agreed = [
        agreements(entity, describe(scene.objects[j])) if j is not None else []
        for entity, j in zip(claims.entities, matched, strict=True)
    ]
    for attribute in ATTRIBUTES:
        right = sum(attribute in names for names in agreed)
        claimed = sum(getattr(entity, attribute) is not None for entity in claims.entities)
        tallies[attribute] = Tally(right, claimed, right, number)
    true = [relation for relation in claims.relations if is_true(relation, matched, scene.objects)]
    related = {end for relation in true for end in (relation.subject, relation.other)}
    tallies["relation"] = Tally(len(true), len(claims.relations), len(related), number if number > 1 else 0)
    tallies["count"] = _single(claims.total, number)
    tallies["background"] = _single(claims.background, scene.background)
    return CaptionScore(**tallies)


def _single(claimed, fact) -> Tally:
    right = int(claimed == fact)
    return Tally(right, int(claimed is not None), right, 1)
