"""What GenEval's classes, those of COCO, are called in a question: one of them, and several."""

import re

_PAIRS = ("scissors", "skis")
_IRREGULAR = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep"}


def thing(name: str) -> str:
    """One of a class, without an article: "cup", "pair of skis"."""
    return f"pair of {name}" if name in _PAIRS else name


def several(name: str) -> str:
    """More than one of a class: "cups", "wine glasses", "pairs of skis"."""
    if name in _PAIRS:
        return f"pairs of {name}"
    *before, last = name.split(" ")
    return " ".join([*before, _IRREGULAR.get(last) or _regular(last)])


def _regular(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return re.sub(r"(?<=[^aeiou])y$", "ie", word) + "s"
