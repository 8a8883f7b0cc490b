"""Questions about images, multiple choice or free form, in the manner of MMT-Bench: read, and replies judged.

A line of the file: {"image": PATH, "question": TEXT, "answer": ..., "choices": [...], "task": NAME}. Paths are relative
to the file. With choices, the answer is the right one's text, letter, or number from 0; without, a text or a list of
texts that are all right. `choices` and `task` are optional. Other keys are passed over, unless one looks like an
optional one under another name: a question whose choices go unseen would be judged as free.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax.bench.replies import LETTERS, letter, normal
from uae_jax.data.lines import whole_text
from uae_jax.plain import similarity

CHOOSE = "Answer with the letter of the right choice alone."
SHORTLY = "Answer with a word or a short phrase."
_REQUIRED = ("image", "question", "answer")
# Optional keys, and what others call them.
_OPTIONAL = {"choices": ("options", "option", "candidates", "answer_choices", *"abcd"), "task": ()}


@dataclasses.dataclass(frozen=True)
class Question:
    """One line.

    Attributes:
      image: file.
      text: the question alone.
      choices: none where the answer is free.
      answers: texts that are right; with choices, the right one's letter.
      task: what it belongs to, "" if to nothing.
      key: tells it from others, whatever folder or line it is in, as long as it reads the same.
    """

    image: Path
    text: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    task: str = ""
    key: str = ""

    @property
    def asked(self) -> str:
        """What the encoder is asked."""
        if not self.choices:
            return f"{self.text}\n{SHORTLY}"
        choices = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=False)]
        return "\n".join([self.text, *choices, CHOOSE])


def read(file: Path) -> list[Question]:
    """Reads a file of questions.

    Raises:
      ValueError: on a line that is no question, naming it, or if there are none.
    """
    found = []
    lines = whole_text(file).split("\n")  # of JSON nothing else ends a line, U+2028 neither
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_question(json.loads(line), file.parent))
            except json.JSONDecodeError:
                raise ValueError(f"{file}:{number}: no JSON: {line[:60]!r}") from None
            except ValueError as error:
                raise ValueError(f"{file}:{number}: {error}") from None
    if not found:
        raise ValueError(f"{file} has no questions")
    return found


def _question(record: Any, folder: Path) -> Question:
    if not isinstance(record, dict):
        raise ValueError(f"is {json.dumps(record)[:60]}, wanted an object")
    _check_keys(record)
    image, text, answer, choices = *(record[name] for name in _REQUIRED), record.get("choices") or []
    if not (isinstance(image, str) and isinstance(text, str)):
        raise ValueError("image and question must be texts")
    if not isinstance(choices, list):
        raise ValueError(f"choices are {choices!r}, wanted a list")
    if len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} choices, wanted at most {len(LETTERS)}")
    texts = tuple(_text(choice, "a choice") for choice in choices)
    if texts:
        answers: tuple[str, ...] = (_right_letter(answer, texts),)
    else:
        answers = tuple(_text(one, "answer") for one in (answer if isinstance(answer, list) else [answer]))
        if not answers or not all(map(normal, answers)):
            raise ValueError("the answer is empty")
    task = "" if record.get("task") is None else _text(record["task"], "task")
    key = hashlib.sha256(json.dumps([image, text, texts, answers]).encode()).hexdigest()[:16]
    return Question(folder / image, text, texts, answers, task, key)


def _check_keys(record: Mapping[str, Any]) -> None:
    if missing := [name for name in _REQUIRED if name not in record]:
        raise ValueError(f"has no {missing[0]!r}; wanted {', '.join(_REQUIRED)}, got {', '.join(record)}")
    others = [name for name in record if name not in (*_REQUIRED, *_OPTIONAL)]
    for wanted, called in _OPTIONAL.items():
        for name in others if record.get(wanted) is None else ():
            if name.lower() in called or similarity(name, wanted) > 0.75:
                raise ValueError(f"has no {wanted!r} but {name!r}; rename it to {wanted!r}, or leave it out")


def _text(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{what} is {json.dumps(value)}, wanted a text or a number")
    return str(value)


def _right_letter(answer: Any, choices: Sequence[str]) -> str:
    """The right choice's letter, of its number, its text, or itself, if only one of these can be meant."""
    text, letters = _text(answer, "answer"), LETTERS[: len(choices)]
    meant = {letters[choices.index(text)]} if choices.count(text) == 1 else set()
    if isinstance(answer, int):
        meant |= set(letters[answer : answer + 1] if answer >= 0 else "")
    elif len(text) == 1:
        meant |= set(letters) & {text}
    if len(meant) > 1:
        remedy = "its letter" if isinstance(answer, int) else "its number, from 0"
        raise ValueError(f"answer {answer!r} may be choice {' or '.join(sorted(meant))}; write {remedy}")
    if not meant:
        raise ValueError(f"answer {answer!r} is none of the choices {list(choices)}, nor a letter or number of one")
    return meant.pop()


def right(question: Question, said: str) -> bool:
    """Whether a reply is right: the right letter, or a right text but for case, articles, marks and numerals."""
    if question.choices:
        return letter(said, question.choices) == question.answers[0]
    return normal(said) in map(normal, question.answers)
