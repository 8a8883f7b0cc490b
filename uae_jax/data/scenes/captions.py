"""Writes captions of scenes, from about five words to everything there is to say, in varied words."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from uae_jax.data.scenes import lexicon
from uae_jax.data.scenes.claims import ATTRIBUTES, Claims, Description, Relation, describe, main_relation
from uae_jax.data.scenes.draws import Draws
from uae_jax.data.scenes.graph import Scene
from uae_jax.data.scenes.render import split_background

LEVELS = ("tag", "short", "medium", "long", "exhaustive")


@dataclasses.dataclass(frozen=True)
class Detail:
    """How likely a caption of one level mentions what there is.

    Attributes:
      objects: an object; the first (largest) is always mentioned.
      most: of so many objects at most.
      attributes: size, fill and position of a mentioned object; shape and colour always are.
      background, total: the background; the number of objects.
      relations: that relations are given until each mentioned object takes part in one.
      sentences: that objects get a sentence each instead of one list.
    """

    objects: float = 1.0
    most: int = 6
    attributes: float = 1.0
    background: float = 1.0
    total: float = 1.0
    relations: float = 1.0
    sentences: float = 1.0


DETAILS = {
    "tag": Detail(objects=0.3, most=2, attributes=0.0, background=0.6, total=0.0, relations=0.0, sentences=0.0),
    "short": Detail(objects=0.75, attributes=0.0, background=0.3, total=0.0, relations=0.0, sentences=0.0),
    "medium": Detail(attributes=0.4, background=0.5, total=0.15, relations=0.0, sentences=0.2),
    "long": Detail(attributes=0.85, total=0.4, relations=0.35, sentences=0.7),
    "exhaustive": Detail(),
}


def write_caption(scene: Scene, level: str, rng: np.random.Generator, keep: float = 1.0) -> str:
    """Writes a caption in lower case; all but tags end in a full stop.

    Args:
      scene: what to describe; the largest objects are named first.
      level: of `LEVELS`. An exhaustive caption names every attribute of every object, their number, the background, and
        at least one relation for every object that is not alone.
      rng: decides what is said and how.
      keep: probability with which each thing that the level would say of colour, size, fill, position, background,
        total and relations is said; below 1 captions become terse.
    """
    if level not in DETAILS:
        raise ValueError(f"level {level!r}, wanted one of {', '.join(LEVELS)}")
    draw = Draws(rng)
    claims = select_claims(scene, level, draw, keep)
    if level == "tag":
        return tag(claims, draw)
    return realise(claims, draw, sentences=draw.chance(DETAILS[level].sentences))


def select_claims(scene: Scene, level: str, draw: Draws, keep: float = 1.0) -> Claims:
    """Chooses what a caption says; everything chosen is true."""
    detail = DETAILS[level]
    items = [item for i, item in enumerate(scene.objects) if i == 0 or draw.chance(detail.objects)][: detail.most]
    entities = []
    for item in items:
        unsaid = [a for a in ("size", "fill", "position") if not draw.chance(detail.attributes * keep)]
        if keep < 1 and not draw.chance(keep):
            unsaid.append("colour")
        entities.append(describe(item).without(*unsaid))
    background = scene.background if draw.chance(detail.background * keep) else None
    total = len(scene.objects) if draw.chance(detail.total * keep) else None
    relations = _relations(items, draw, keep) if len(items) > 1 and draw.chance(detail.relations) else []
    return Claims(tuple(entities), background, total, tuple(relations))


def _relations(items: Sequence, draw: Draws, keep: float) -> list[Relation]:
    """Pairs that leave no object out."""
    order = draw.shuffled(range(len(items)))
    if len(order) % 2:
        order.append(order[0])
    pairs = [pair for pair in zip(order[::2], order[1::2], strict=True) if draw.chance(keep)]
    return [Relation(a, main_relation(items[a], items[b]), b) for a, b in pairs]


def tag(claims: Claims, draw: Draws) -> str:
    """Only what is there, and the background where one thing is."""
    groups = _groups(claims.entities, draw)
    tail = f" on {claims.background}" if claims.background and len(groups) == 1 else ""
    return _enumerate([_thing(group, draw) for group in groups]) + tail


def realise(claims: Claims, draw: Draws, sentences: bool = True) -> str:
    """Puts claims into words; `parse_caption` reads the same claims back, up to the order of entities.

    Relations whose objects the rest of the caption does not tell apart are left out.

    Args:
      claims: with shapes named for all entities.
      draw: decides the wording.
      sentences: give every object, or group of equal objects, its own sentence instead of one list.
    """
    parts = []
    if claims.total is not None:
        parts.append(_total(claims.total, draw))
    ground = claims.background
    groups, brief = _groups(claims.entities, draw), len(claims.entities) > 4  # keeps six objects within 120 words
    if groups and sentences:
        parts += [_sentence(group, draw, brief) for group in groups]
    elif groups:
        tail = ""
        if ground is not None and draw.chance(0.7):
            tail, ground = " " + _against(ground, draw), None
        parts.append(_list(groups, draw, brief) + tail)
    if ground is not None:
        first = not sentences or draw.chance(0.5)
        parts.insert(0 if first and claims.total is None else len(parts), f"the background is {ground}")
    for relation in claims.relations:
        ends = _reference(relation.subject, claims, draw), _reference(relation.other, claims, draw)
        if None not in ends:
            phrase = draw.choice(lexicon.RELATION_PHRASES[relation.kind])
            parts.append(f"{ends[0]} is {phrase} {ends[1]}")
    return ". ".join(parts) + "." if parts else ""


def _groups(entities: Sequence[Description], draw: Draws) -> list[list[Description]]:
    """Objects that differ in nothing but position may be named together."""
    groups: dict[tuple, list[Description]] = {}
    together = draw.chance(0.75)
    for i, entity in enumerate(entities):
        key = (entity.without("position"), entity.position is None, None if together else i)
        groups.setdefault(key, []).append(entity)
    return list(groups.values())


def _thing(group: Sequence[Description], draw: Draws) -> str:
    """ "a small red circle" or "two small red circles"."""
    one = group[0]
    phrase = _noun_phrase(one, draw, plural=len(group) > 1)
    return f"{lexicon.NUMBERS[len(group) - 1]} {phrase}" if len(group) > 1 else lexicon.with_article(phrase)


def _noun_phrase(entity: Description, draw: Draws, plural: bool = False, tails: bool = True) -> str:
    words, tail = [], ""
    if entity.size:
        words.append(draw.choice(lexicon.SIZE_WORDS[entity.size]))
    if tails and entity.fill in lexicon.FILL_TAILS and draw.chance(0.25):
        tail = " " + draw.choice(lexicon.FILL_TAILS[entity.fill])
    elif entity.fill:
        words.append(draw.choice(lexicon.FILL_WORDS[entity.fill]))
    if entity.colour:
        words.append(_usual(lexicon.COLOUR_WORDS[entity.colour], draw))
    words.append(_usual(lexicon.NOUNS[entity.shape], draw)[plural])
    return " ".join(words) + tail


def _usual(forms: Sequence, draw: Draws):
    """The first form three times out of four."""
    return forms[0] if len(forms) == 1 or draw.chance(0.75) else draw.choice(forms[1:])


def _places(group: Sequence[Description], draw: Draws, brief: bool) -> str:
    """ "at the top left and in the center"; the first, short forms alone where brief."""
    forms = [lexicon.PLACES[entity.position] for entity in group if entity.position]
    return _enumerate([each[0] if brief else draw.choice(each) for each in forms])


def _enumerate(items: Sequence[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)


def _list(groups: Sequence[Sequence[Description]], draw: Draws, brief: bool) -> str:
    items = [f"{_thing(group, draw)} {_places(group, draw, brief)}".rstrip() for group in groups]
    style = draw.uniform()
    if style < 0.5:
        intro = ""
    elif style < 0.75:
        intro = "there are " if len(groups[0]) > 1 else "there is "
    else:
        intro = _picture_shows(draw)
    return intro + _enumerate(items)


def _sentence(group: Sequence[Description], draw: Draws, brief: bool) -> str:
    thing, places, plural = _thing(group, draw), _places(group, draw, brief), len(group) > 1
    exists = "there are" if plural else "there is"
    style = draw.uniform()
    if not places or style < 0.2:
        return f"{exists} {thing} {places}".rstrip()
    if style < 0.4 and not plural:
        return f"{places} there is {thing}"
    return f"{thing} {draw.choice(lexicon.STANDS)[plural]} {places}"


def _total(count: int, draw: Draws) -> str:
    plural = count > 1
    total = f"{lexicon.NUMBERS[count - 1]} {draw.choice(lexicon.GENERIC)[plural]}"
    style = draw.uniform()
    if style < 0.4:
        return f"there {'are' if plural else 'is'} {total}"
    if style < 0.7:
        return f"{total} {'are' if plural else 'is'} shown"
    return _picture_shows(draw) + total


def _picture_shows(draw: Draws) -> str:
    return f"the {draw.choice(lexicon.PICTURES)} {draw.choice(lexicon.SHOWS)} "


def _against(background: str, draw: Draws) -> str:
    first, second, _ = split_background(background)
    word = draw.choice(lexicon.AGAINST)
    if first == second and draw.chance(0.6):
        return f"{word} {lexicon.with_article(background)} background"
    return f"{word} {background}"


def _reference(index: int, claims: Claims, draw: Draws) -> str | None:
    """ "the red circle", with its place or else as many attributes as it takes to mean this entity alone; or None."""
    entity = claims.entities[index]
    unsaid = [ATTRIBUTES[count:] for count in range(2, len(ATTRIBUTES) + 1)]
    for others in (unsaid[0], ("size", "fill"), *unsaid[1:]):
        said = entity.without(*others)
        if sum(other.says(said) for other in claims.entities) == 1:
            place = f" {lexicon.PLACES[said.position][0]}" if said.position else ""
            return f"the {_noun_phrase(said, draw, tails=False)}{place}"
    return None
