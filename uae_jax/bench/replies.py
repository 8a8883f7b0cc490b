"""What a reply to a question comes down to: the letter of a choice, or a text that can be compared."""

import re
import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SAME = {word: str(number) for number, word in enumerate(_WORDS)} | {"percent": "%"}
_ARTICLES = ("a", "an", "the")
_EMPHASIS = re.compile(r"[*_`\"“”<>{}]")
_TOKEN = re.compile(r"(?<!\w)-?\d+(?:\.\d+)?(?!\w)|%|\w+")
_LEADS = "answer|choice|option|boxed|is|be|think|say|choose|pick"  # words that a letter may stand behind
_VERBS = "is|because|since|as"  # behind "A" and "I", tell letters from article and pronoun


def letter(said: str, choices: Sequence[str]) -> str | None:
    """The letter that a reply to a multiple choice question comes down to; None if it comes down to none.

    A letter at the start counts first; else one that is declared ("the answer is B"); else a choice whose text is the
    only one in the reply. A letter beside another ("A or B") is none.
    """
    plain = _EMPHASIS.sub("", said).strip()
    one = _letter_pattern(LETTERS[: len(choices)])
    for pattern in (rf"\W*{one}", rf".*?\b(?i:{_LEADS})\W*{one}"):
        if match := re.match(pattern, plain, re.DOTALL):
            return match["letter"].upper()
    words, texts = f" {normal(said)} ", [f" {normal(choice)} " for choice in choices]
    named = [text for text in texts if text.strip() and text in words]
    longest = [text for text in named if not any(text != other and text in other for other in named)]
    return LETTERS[texts.index(longest[0])] if len(longest) == 1 else None


def _letter_pattern(letters: str) -> str:
    """Of a letter that stands for a choice: a capital that begins no noun phrase or sentence, or a small one alone."""
    capital = rf"(?![AI] +(?!(?:{_VERBS})\b)\w)[{letters}](?![\w'\u2019-])"
    small = rf"[{letters.lower()}](?=[.:)\]!?,]*(?:\s|$))(?! +\w)"
    return rf"(?P<letter>{capital}|{small})(?!\W*(?:,|/|&|\bor\b|\band\b)\W*{capital})"


def normal(text: str) -> str:
    """A text but for case, articles, marks, and how numbers are written; signs of numbers, points and per cent stay."""
    text = re.sub(
        r"(?<=\d),(?=\d{3}(?!\d))", "", text.lower().replace("\N{MINUS SIGN}", "-").replace("per cent", "percent")
    )
    words = _TOKEN.findall(text)
    return " ".join(_SAME.get(word, word) for word in words if word not in _ARTICLES) or " ".join(words)
