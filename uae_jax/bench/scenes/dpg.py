"""Twin of DPG-Bench: long captions of scenes, questions about all that they say, answered by the detector.

Questions and their dependencies have the form of `dpg_bench.csv`; shapes differ within a scene, so that "the circle" is
one thing.
"""

import csv
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from uae_jax.bench.judging import Check
from uae_jax.bench.scenes import held_out
from uae_jax.data.scenes import Claims, Relation, Scene, detect, parse_caption
from uae_jax.data.scenes.captions import realise, select_claims
from uae_jax.data.scenes.lexicon import FILL_WORDS, NUMBERS, PLACES, RELATION_PHRASES, with_article
from uae_jax.data.scenes.matching import is_true, match

OBJECTS = (3, 4, 5, 6)  # of a scene; captions have some 50 to 110 words
_FIRST_KIND = 20
_COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple"),
    "question_natural_language",
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """Something that a caption says.

    Attributes:
      check: the question whether it is so.
      about: what the official table has in brackets: of what, and what.
      holds: answers the question.
    """

    check: Check
    about: str
    holds: Callable[["Found"], bool]


class Found:
    """What was found in a painting, each thing beside what a caption says of it."""

    def __init__(self, claims: Claims, scene: Scene):
        self.scene, self._matched = scene, match(claims, scene.objects)

    def has(self, entity: int, attribute: str, value: str) -> bool:
        """Whether what was painted for an entity has this value."""
        place = self._matched[entity]
        return place is not None and getattr(self.scene.objects[place], attribute) == value

    def related(self, relation: Relation) -> bool:
        """Whether two entities stand to each other as is said."""
        return is_true(relation, self._matched, self.scene.objects)


def prompts(count: int) -> dict[str, str]:
    """Stem -> caption, `count` for each number of objects."""
    found = {}
    for kind, objects in enumerate(OBJECTS, start=_FIRST_KIND):
        fits = functools.partial(held_out.all_differ, attribute="shape")
        for number, (scene, draws) in enumerate(held_out.draw(kind, count, held_out.of(objects, repeat=0.0), fits)):
            found[f"{objects}_objects_{number:03d}"] = realise(select_claims(scene, "exhaustive", draws), draws)
    return found


def facts(claims: Claims) -> list[Fact]:
    """All that a caption says, in the order of the table. An object's attributes depend on its being there."""
    found: list[Fact] = []

    def add(text: str, category: str, about: str, holds: Callable[[Found], bool], parents: tuple[int, ...] = ()) -> int:
        found.append(Fact(Check(text, len(found) + 1, parents, category), about, holds))
        return len(found)

    if claims.total is not None:
        several = f"{NUMBERS[claims.total - 1]} objects"
        total = claims.total
        add(f"Are there {several}?", "other - count", several, lambda found: len(found.scene.objects) == total)
    if ground := claims.background:
        text = f"Is the background {ground}?"
        add(text, "global - background", ground, lambda found: found.scene.background == ground)
    numbers = []
    for i, entity in enumerate(claims.entities):
        noun = entity.shape
        is_it = functools.partial(_has, i)
        numbers.append(
            add(f"Is there {with_article(noun)}?", "entity - whole", noun, functools.partial(is_it, "shape", noun))
        )
        for attribute, category, words in (
            ("colour", "attribute - color", entity.colour),
            ("size", "attribute - size", entity.size),
            ("fill", "attribute - texture", entity.fill and FILL_WORDS[entity.fill][0]),
            ("position", "relation - spatial", entity.position and PLACES[entity.position][0]),
        ):
            if words:
                holds = functools.partial(is_it, attribute, getattr(entity, attribute))
                add(f"Is the {noun} {words}?", category, f"{noun}, {words}", holds, (numbers[i],))
    for relation in claims.relations:
        subject, other = (claims.entities[end].shape for end in (relation.subject, relation.other))
        words = RELATION_PHRASES[relation.kind][0]
        parents = (numbers[relation.subject], numbers[relation.other])
        about, holds = f"{subject}, {other}, {words}", functools.partial(_related, relation)
        add(f"Is the {subject} {words} the {other}?", "relation - spatial", about, holds, parents)
    return found


def answers(caption: str, image: np.ndarray) -> list[bool]:
    """The answers to a caption's questions about a painting, u8[S, S, 3]."""
    claims = parse_caption(caption)
    found = Found(claims, detect(image))
    return [fact.holds(found) for fact in facts(claims)]


def checks(captions: dict[str, str]) -> dict[str, list[Check]]:
    """Stem -> its questions."""
    return {stem: [fact.check for fact in facts(parse_caption(caption))] for stem, caption in captions.items()}


def write(captions: dict[str, str], folder: Path, table: Path) -> None:
    """Writes the folder of prompts and the table of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        writer.writerow(_COLUMNS)  # the official code leaves out the first row of data
        for stem, caption in captions.items():
            (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
            for fact in facts(parse_caption(caption)):
                check, (broad, detailed) = fact.check, fact.check.category.split(" - ")
                parents = ",".join(map(str, check.parents)) or "0"
                told = f"{check.category} ({fact.about})"
                writer.writerow([stem, caption, "", check.number, parents, broad, detailed, told, check.text])


def _has(entity: int, attribute: str, value: str, found: Found) -> bool:
    return found.has(entity, attribute, value)


def _related(relation: Relation, found: Found) -> bool:
    return found.related(relation)
