"""Reads captions back into claims, whatever state their grammar is in."""

import dataclasses
import functools
import re

from uae_jax.data.scenes import lexicon
from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, Description, Relation

_TOKENS = re.compile(r"[a-z]+|[.,]")
_DETERMINERS = ("a", "an", "the")
_LONGEST = 5  # words of a phrase


def parse_caption(text: str) -> Claims:
    """Reads what a caption says.

    Exact for captions of this package; of any other text what can be read is read. Case, unknown words and unknown
    characters do not matter, and nothing raises. "the red circle" means an entity named before, if one fits, else a
    new one. Where a caption contradicts itself (two backgrounds, two totals), the last word counts.
    """
    reader = _Reader()
    for sentence in " ".join(_TOKENS.findall(text.lower())).split("."):
        reader.read(_segment(sentence.split()))
    grammatical = lexicon.grammar().fullmatch(" ".join(text.lower().split())) is not None
    return Claims(tuple(reader.entities), reader.background, reader.total, tuple(reader.relations), grammatical)


@functools.cache
def _joints() -> dict[str, str]:
    return {form: form for form in lexicon.JOINTS.values()}


def _segment(words: list[str]) -> list[tuple[str, str]]:
    """Words -> (category, name) of the longest phrases known; words that carry nothing are left out."""
    table, items, i = lexicon.phrases(), [], 0
    while i < len(words):
        for length in range(min(_LONGEST, len(words) - i), 0, -1):
            phrase = " ".join(words[i : i + length])
            if phrase in table:
                items.append(table[phrase])
                break
            if phrase in _joints():
                items.append(("joint", phrase))
                break
            if length == 1 and phrase in (*_DETERMINERS, ",", "and"):
                items.append(("determiner" if phrase in _DETERMINERS else "break", phrase))
        i += length
    return items


@dataclasses.dataclass
class _Mention:
    """A noun phrase while its sentence is read."""

    said: Description
    count: int
    definite: bool
    places: list[str] = dataclasses.field(default_factory=list)

    def descriptions(self) -> list[Description]:
        """One per object meant; as many places as objects are dealt out, one place holds for all."""
        places: list[str | None] = list(self.places[: self.count])
        if len(places) == 1:
            places *= self.count
        places += [None] * (self.count - len(places))
        return [dataclasses.replace(self.said, position=place) for place in places]


class _Reader:
    """What was read so far, sentence by sentence."""

    def __init__(self):
        self.entities: list[Description] = []
        self.relations: list[Relation] = []
        self.background: str | None = None
        self.total: int | None = None

    def read(self, items: list[tuple[str, str]]) -> None:
        """Reads one sentence."""
        items = self._read_background(items)
        mentions, links = self._mentions(items)
        meant = [self._resolve(mention) for mention in mentions]
        for at, kind in links:
            if 0 < at < len(meant):
                self._relate(meant[at - 1], kind, meant[at])

    def _read_background(self, items: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Takes the tones out of a sentence: "white", "white over gray", "white fading to gray"."""
        tones = [i for i, (category, _) in enumerate(items) if category == "tone"]
        if tones:
            first = tones[0]
            self.background = items[first][1]
            follow = items[first + 1 : first + 3]
            if [category for category, _ in follow] == ["joint", "tone"]:
                self.background = " ".join((self.background, follow[0][1], follow[1][1]))
        return [item for item in items if item[0] not in ("tone", "joint")]

    def _mentions(self, items: list[tuple[str, str]]) -> tuple[list[_Mention], list[tuple[int, str]]]:
        """Noun phrases, and (index of the mention that follows, kind) for each relation between two of them."""
        mentions: list[_Mention] = []
        links: list[tuple[int, str]] = []
        said: dict[str, str] = {}
        count, definite, fronted = 0, False, None
        for category, name in items:
            if category in ("size", "fill", "colour"):
                said[category] = name
            elif category == "number":
                count, said = int(name), {}
            elif category == "determiner":
                definite, count, said = name == "the", 0, {}
            elif category == "break":
                said = {}
            elif category == "relation":
                links.append((len(mentions), name))
            elif category == "tail" and mentions:
                mentions[-1].said = dataclasses.replace(mentions[-1].said, fill=name)
            elif category == "position":
                if mentions:
                    mentions[-1].places.append(name)
                else:
                    fronted = name
            elif category == "generic" and not said:
                self.total = count or self.total
            elif category in ("noun", "generic"):
                shape = name if category == "noun" else None
                places = [fronted] if fronted else []
                mentions.append(_Mention(Description(shape=shape, **said), max(count, 1), definite, places))
                fronted = None
            if category in ("noun", "generic"):
                count, definite, said = 0, False, {}
        return mentions, links

    def _resolve(self, mention: _Mention) -> list[int]:
        """The entities meant, new ones where none was named before."""
        if mention.definite and mention.count == 1:
            said = mention.descriptions()[0]
            for i, known in enumerate(self.entities):
                if known.says(said):
                    return [i]
            for i, known in enumerate(self.entities):
                values = {a: getattr(known, a) or getattr(said, a) for a in ATTRIBUTES}
                if Description(**values).says(said):
                    self.entities[i] = Description(**values)
                    return [i]
        self.entities += mention.descriptions()
        return list(range(len(self.entities) - mention.count, len(self.entities)))

    def _relate(self, subjects: list[int], kind: str, others: list[int]) -> None:
        for subject in subjects:
            for other in others:
                relation = Relation(subject, kind, other)
                if relation not in self.relations:
                    self.relations.append(relation)
