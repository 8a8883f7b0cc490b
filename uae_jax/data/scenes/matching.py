"""Which claim speaks of which object: the best assignment of descriptions to objects."""

from collections.abc import Sequence

import numpy as np
import scipy  # its parts load when they are used, which takes longer than all the rest

from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, Description, Relation, describe, holds
from uae_jax.data.scenes.graph import SceneObject

# How much an agreeing attribute speaks for a pair. With these, one wrong attribute in an otherwise full description
# never moves a claim to another object at a gain.
WEIGHTS = {"shape": 4, "colour": 4, "size": 2, "fill": 2, "position": 3}
_PAIR = 1000  # more than all attributes of all pairs: as many claims as possible find an object


def match(claims: Claims, items: Sequence[SceneObject], loose: bool = False) -> list[int | None]:
    """Assigns every claimed entity to at most one object, and the other way round.

    The assignment has as many pairs as possible, then the largest agreement; where several are as good, one that makes
    more of the claimed relations true. A pair needs the shape or the colour in common; an entity of which neither is
    claimed fits any object, and if `loose`, so does every other.

    Returns:
      Per entity the index of its object, or None.
    """
    if not claims.entities or not items:
        return [None] * len(claims.entities)
    facts = [describe(item) for item in items]
    value = np.array([[_value(entity, fact, loose) for fact in facts] for entity in claims.entities])
    matched: list[int | None] = [None] * len(claims.entities)
    for entity, fact in zip(*scipy.optimize.linear_sum_assignment(value, maximize=True), strict=True):
        if value[entity, fact] > 0:
            matched[entity] = int(fact)
    return _settle(matched, claims.relations, items, value) if claims.relations else matched


def is_true(relation: Relation, matched: Sequence[int | None], items: Sequence[SceneObject]) -> bool:
    """Whether a claimed relation holds between the objects that its entities were matched with."""
    subject, other = matched[relation.subject], matched[relation.other]
    return subject is not None and other is not None and holds(relation.kind, items[subject], items[other])


def agreements(said: Description, fact: Description) -> list[str]:
    """The attributes that are claimed and right."""
    return [a for a in ATTRIBUTES if getattr(said, a) is not None and getattr(said, a) == getattr(fact, a)]


def _value(said: Description, fact: Description, loose: bool) -> int:
    agreed = agreements(said, fact)
    named = said.shape is not None or said.colour is not None
    if named and not loose and "shape" not in agreed and "colour" not in agreed:
        return 0
    return _PAIR + sum(WEIGHTS[attribute] for attribute in agreed)


def _settle(
    matched: list[int | None], relations: Sequence[Relation], items: Sequence[SceneObject], value: np.ndarray
) -> list[int | None]:
    """Exchanges partners of equal worth while that makes more relations true."""

    def worth(candidate):
        return sum(value[i, j] for i, j in enumerate(candidate) if j is not None)

    def true(candidate):
        return sum(is_true(relation, candidate, items) for relation in relations)

    improved = True
    while improved:
        improved = False
        for entity in range(len(matched)):
            for fact in range(len(items)):
                candidate = list(matched)
                if fact in candidate:
                    candidate[candidate.index(fact)] = matched[entity]
                candidate[entity] = fact
                if worth(candidate) == worth(matched) and true(candidate) > true(matched):
                    matched, improved = candidate, True
    return matched
