"""Questions about images, multiple choice or free form, in the manner of MMT-Bench: read, asked, judged.

A line of the file: {"image": PATH, "question": TEXT, "answer": ..., "choices": [...], "task": NAME}. Paths are relative
to the file. With choices, the answer is the right one's text, letter, or number from 0; without, a text or a list of
texts that are all right. `task` is optional; accuracy is told for each, and their plain mean, as MMT-Bench has it.
"""

import dataclasses
import json
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax.bench.intervals import mean_interval

LETTERS = string.ascii_uppercase
CHOOSE = "Answer with the letter of the right choice alone."
SHORTLY = "Answer with a word or a short phrase."
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)}
_ARTICLES = ("a", "an", "the")


@dataclasses.dataclass(frozen=True)
class Question:
    """One line.

    Attributes:
      image: file.
      text: the question alone.
      choices: none where the answer is free.
      answers: texts that are right; with choices, the right one's letter.
      task: what it belongs to, "" if to nothing.
    """

    image: Path
    text: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    task: str = ""

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
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                found.append(_question(json.loads(line), file.parent))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file}:{number}: {_reason(error)}") from None
    if not found:
        raise ValueError(f"{file} has no questions")
    return found


def _question(record: Any, folder: Path) -> Question:
    if not isinstance(record, dict):
        raise TypeError("wanted an object")
    image, text, answer = record["image"], record["question"], record["answer"]
    choices = tuple(map(str, record.get("choices") or ()))
    if not (isinstance(image, str) and isinstance(text, str)):
        raise TypeError("image and question must be texts")
    if len(choices) > len(LETTERS):
        raise ValueError(f"{len(choices)} choices, wanted at most {len(LETTERS)}")
    answers = (
        (_letter(answer, choices),) if choices else tuple(map(str, answer if isinstance(answer, list) else [answer]))
    )
    if not all(_normal(answer) for answer in answers) or not answers:
        raise ValueError("the answer is empty")
    return Question(folder / image, text, choices, answers, str(record.get("task", "")))


def _letter(answer: Any, choices: Sequence[str]) -> str:
    """The right choice's letter, of its number, its text, or itself."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        if 0 <= answer < len(choices):
            return LETTERS[answer]
    elif choices.count(str(answer)) == 1:
        return LETTERS[choices.index(str(answer))]
    elif str(answer) in LETTERS[: len(choices)] and len(str(answer)) == 1:
        return str(answer)
    raise ValueError(f"answer {answer!r} is none of the choices {list(choices)}, nor a letter or number of one")


def chosen(question: Question, said: str) -> str | None:
    """The letter that an answer to a multiple choice question comes down to; None if it comes down to none.

    A letter at the start, alone or before a stop or bracket, counts first; else one that is declared ("the answer is
    B"); else a choice whose text is the only one in the answer.
    """
    letters = LETTERS[: len(question.choices)]
    alone = rf"^\W*(?!A\s+[a-z])([{letters}])(?=$|[\s.,:;)\]])"  # "A dog" begins with an article, not with a letter
    declared = rf"(?i:answer|choice|option)(?: is)?:?\s*\(?([{letters}])\b"
    for pattern in (alone, declared):
        if match := re.search(pattern, said.strip()):
            return match.group(1)
    words = f" {_normal(said)} "
    named = [choice for choice in question.choices if f" {_normal(choice)} " in words]
    longest = [
        choice for choice in named if not any(choice != other and _normal(choice) in _normal(other) for other in named)
    ]
    return LETTERS[question.choices.index(longest[0])] if len(longest) == 1 else None


def right(question: Question, said: str) -> bool:
    """Whether an answer is right: the right letter, or a right text but for case, articles, marks and numerals."""
    if question.choices:
        return chosen(question, said) == question.answers[0]
    return _normal(said) in {_normal(answer) for answer in question.answers}


def _normal(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES) or " ".join(words)


def summary(questions: Sequence[Question], said: Mapping[int, str]) -> dict[str, Any]:
    """Accuracy, overall and by task.

    Args:
      questions: all of them.
      said: number of a question -> its answer; one that has none, its image being unreadable, counts as wrong.

    Returns:
      "questions", "unanswered", "undecided" (no letter could be read off), "accuracy" with its 95% "interval", "tasks"
      and "task_mean".
    """
    correct = np.array([i in said and right(q, said[i]) for i, q in enumerate(questions)], np.float64)
    tasks = {task: correct[[q.task == task for q in questions]] for task in sorted({q.task for q in questions})}
    undecided = [i for i, q in enumerate(questions) if i in said and q.choices and chosen(q, said[i]) is None]
    return {
        "questions": len(questions),
        "unanswered": len(questions) - len(said),
        "undecided": len(undecided),
        "accuracy": float(correct.mean()),
        "interval": mean_interval(correct),
        "tasks": {task: float(values.mean()) for task, values in tasks.items()},
        "task_mean": float(np.mean([values.mean() for values in tasks.values()])),
    }


def _reason(error: Exception) -> str:
    return f"has no {error}" if isinstance(error, KeyError) else str(error)
