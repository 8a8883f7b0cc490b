"""The words of captions and the grammar that they follow.

Writing takes from these tables, reading looks up in them, and the grammar is one regular expression built from them, so
that the three cannot differ. All text is lower case.

    caption    = sentence (". " sentence)* "."?
    sentence   = [intro] item ((", " item)* " and " item)? [" on white"]
               | thing " is " place | things " are " places | place " there is " thing
               | "there are three objects" | "the background is white" | reference " is left of " reference
    item       = thing | thing places
    thing      = "a" size? fill? colour? noun tail?
"""

import functools
import re

from uae_jax.data.scenes.graph import POSITIONS
from uae_jax.data.scenes.render import BACKGROUND_RGB, COLOUR_RGB

# Canonical name -> (singular, plural) forms.
NOUNS = {
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "diamond": (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    "star": (("star", "stars"),),
    "heart": (("heart", "hearts"),),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
    "moon": (("moon", "moons"), ("crescent", "crescents")),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "big", "huge"),
}
FILL_WORDS = {
    "solid": ("solid", "plain"),
    "striped": ("striped", "banded"),
    "dotted": ("dotted", "spotted"),
    "outlined": ("outlined", "bordered"),
}
FILL_TAILS = {"striped": ("with stripes",), "dotted": ("with dots", "with spots"), "outlined": ("with a border",)}
COLOUR_WORDS = {name: (name,) for name in COLOUR_RGB} | {"purple": ("purple", "violet"), "cyan": ("cyan", "turquoise")}
TONE_WORDS = {name: (name,) for name in BACKGROUND_RGB}


def _corner(vertical: str, side: str) -> tuple[str, ...]:
    upper = {"top": "upper", "bottom": "lower"}[vertical]
    return (f"at the {vertical} {side}", f"in the {vertical} {side} corner", f"in the {upper} {side} corner")


PLACES = {
    "top left": _corner("top", "left"),
    "top": ("at the top", "at the top center", "in the upper middle"),
    "top right": _corner("top", "right"),
    "left": ("on the left", "on the left side", "in the left middle"),
    "center": ("in the center", "in the middle", "at the center"),
    "right": ("on the right", "on the right side", "in the right middle"),
    "bottom left": _corner("bottom", "left"),
    "bottom": ("at the bottom", "at the bottom center", "in the lower middle"),
    "bottom right": _corner("bottom", "right"),
}
RELATION_PHRASES = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "under", "lower than"),
}
NUMBERS = ("one", "two", "three", "four", "five", "six")
GENERIC = (("object", "objects"), ("shape", "shapes"))
PICTURES = ("picture", "image", "scene")
SHOWS = ("shows", "contains", "has")
STANDS = (("is", "are"), ("sits", "sit"), ("lies", "lie"))
AGAINST = ("on", "against")
JOINTS = {"split": "over", "gradient": "fading to"}


def with_article(phrase: str) -> str:
    """Puts "a" or "an" before a phrase."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@functools.cache
def phrases() -> dict[str, tuple[str, str]]:
    """Every phrase that carries meaning -> (category, canonical name), for reading.

    Categories: noun (plural forms too), size, fill, colour, tail (a fill behind its noun), position, relation, tone,
    number (as digits), generic. Bare names of positions ("top left") are understood as well.
    """
    found: dict[str, tuple[str, str]] = {}
    tables = [("size", SIZE_WORDS), ("fill", FILL_WORDS), ("colour", COLOUR_WORDS), ("tone", TONE_WORDS)]
    tables += [("tail", FILL_TAILS), ("position", PLACES), ("relation", RELATION_PHRASES)]
    for category, table in tables:
        found.update({form: (category, name) for name, forms in table.items() for form in forms})
    found.update({form: ("noun", name) for name, pairs in NOUNS.items() for pair in pairs for form in pair})
    found.update({form: ("generic", "object") for pair in GENERIC for form in pair})
    found.update({word: ("number", str(i + 1)) for i, word in enumerate(NUMBERS)})
    return {name: ("position", name) for name in POSITIONS} | found


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted; besides these only spaces, commas and full stops occur."""
    texts = [*phrases(), *PICTURES, *SHOWS, *AGAINST, *JOINTS.values(), *(form for pair in STANDS for form in pair)]
    texts += ["a", "an", "and", "the", "there", "shown", "background"]
    return tuple(sorted({word for text in texts for word in text.split()}))


def _any(forms) -> str:
    return "(?:" + "|".join(sorted(forms, key=len, reverse=True)) + ")"


def _forms(table: dict[str, tuple[str, ...]]) -> str:
    return _any(form for forms in table.values() for form in forms)


def _listed(item: str) -> str:
    return f"{item}(?:(?:, {item})* and {item})?"


@functools.cache
def grammar() -> re.Pattern:
    """Matches a whole caption that is grammatical; see the head of this file."""
    pairs = [pair for forms in NOUNS.values() for pair in forms]
    tail = f"(?: {_forms(FILL_TAILS)})"
    adjectives = f"(?:{_forms(SIZE_WORDS)} )?(?:{_forms(FILL_WORDS)} )?(?:{_forms(COLOUR_WORDS)} )?"
    bare = adjectives + _any(one for one, _ in pairs) + f"{tail}?"
    article, many = "(?:an (?=[aeiou])|a (?![aeiou]))", _any(NUMBERS[1:]) + " "
    thing, things = article + bare, many + adjectives + _any(more for _, more in pairs) + f"{tail}?"
    place, places = _forms(PLACES), _listed(_forms(PLACES))
    item = f"(?:{thing}(?: {place})?|{things}(?: {places})?)"
    tone = _forms(TONE_WORDS)
    ground = f"{tone}(?: {_any(JOINTS.values())} {tone})?"
    tail_ground = f"(?: {_any(AGAINST)} (?:{article}{tone} background|{ground}))"
    picture, shows = f"the {_any(PICTURES)}", _any(SHOWS)
    intro = f"(?:there is (?=an? )|there are (?!an? )|{picture} {shows} )"
    total = f"(?:one {_any(one for one, _ in GENERIC)}|{many}{_any(more for _, more in GENERIC)})"
    totals = f"(?:there is (?=one )|there are (?!one )|{picture} {shows} ){total}"
    shown = f"{total} (?:(?<=[^s] )is|(?<=s )are) shown"
    reference = f"the {bare}(?: {place})?"
    sentences = [
        f"{intro}?{_listed(item)}{tail_ground}?",
        f"{thing} {_any(one for one, _ in STANDS)} {place}",
        f"{things} {_any(more for _, more in STANDS)} {places}",
        f"{place} there is {thing}",
        f"{totals}{tail_ground}?",
        f"{shown}{tail_ground}?",
        f"the background is {ground}",
        f"{reference} is {_forms(RELATION_PHRASES)} {reference}",
    ]
    sentence = _any(sentences)
    return re.compile(f"{sentence}(?:\\. {sentence})*\\.?")
