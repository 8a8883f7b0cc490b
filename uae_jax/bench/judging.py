"""DPG-Bench and GenEval judged by our encoder as a question answerer: another judge than the official ones.

DPG-Bench's official questions are asked and its rule for dependent questions kept (ELLA, `compute_dpg_bench.py`), with
our encoder in place of mPLUG-VQA. GenEval has no questions, only what a picture must hold; each of these becomes one or
two, in place of Mask2Former and CLIP. Figures compare with each other, never with published ones.
"""

import csv
import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax.bench.grids import COPIES
from uae_jax.bench.intervals import mean_interval
from uae_jax.bench.layouts import read_lines

YES_OR_NO = "Answer yes or no."
Answers = Sequence[Sequence[bool]]  # for each painting of a prompt, to each of its questions


@dataclasses.dataclass(frozen=True)
class Check:
    """A question whose right answer is yes.

    Attributes:
      text: the question.
      number: by which others depend on it.
      parents: numbers of the questions that it makes sense only after.
      category: it counts for.
    """

    text: str
    number: int = 0
    parents: tuple[int, ...] = ()
    category: str = ""

    @property
    def asked(self) -> str:
        """What the encoder is asked."""
        return f"{self.text} {YES_OR_NO}"


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to be judged.

    Attributes:
      key: of its prompt: stem of DPG-Bench, number of GenEval.
      file: that it is in.
      quarter: of the file; None for all of it.
    """

    key: Any
    file: Path
    quarter: int | None = None


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is to be judged.

    Attributes:
      checks: key of a prompt -> its questions.
      found: pictures.
      summary: makes figures of answers, key -> for each picture its answers.
    """

    checks: Mapping[Any, Sequence[Check]]
    found: Sequence[Picture]
    summary: Callable[[Mapping[Any, Answers]], dict[str, Any]]


def yes(said: str) -> bool:
    """Whether an answer begins with yes."""
    return said.strip().lower().startswith("yes")


# -- DPG-Bench --


def read_dpg(file: Path) -> dict[str, list[Check]]:
    """Stem of a prompt -> its questions, in the order of `dpg_bench.csv`.

    The first row of data is left out, as the official code does.

    Raises:
      ValueError: if it is another file.
    """
    found: dict[str, list[Check]] = defaultdict(list)
    with file.open(newline="", encoding="utf-8") as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            if number == 0:
                continue
            try:
                parents = tuple(int(parent) for parent in row["dependency"].split(",") if int(parent))
                category = row["tuple"].split("(")[0].strip()
                check = Check(row["question_natural_language"], int(row["proposition_id"]), parents, category)
                found[row["item_id"]].append(check)
            except (KeyError, ValueError, AttributeError, TypeError):
                raise ValueError(f"{file}:{number + 2}: not a row of dpg_bench.csv") from None
    if not found:
        raise ValueError(f"{file} has no questions")
    return dict(found)


def dpg_score(checks: Sequence[Check], answers: Sequence[bool]) -> float:
    """Of one painting: the mean over its questions, one being wrong if a question that it depends on is.

    Questions are gone through in the order of the file, so that a question that was made wrong makes those after it
    wrong, too, as in the official code.
    """
    scores = {check.number: float(answer) for check, answer in zip(checks, answers, strict=True)}
    for check in checks:
        if any(scores[parent] == 0 for parent in check.parents):
            scores[check.number] = 0.0
    return sum(scores.values()) / len(scores)


def dpg_summary(questions: Mapping[str, Sequence[Check]], said: Mapping[str, Answers]) -> dict[str, Any]:
    """The benchmark's figures, times 100 as published.

    Args:
      questions: of `read_dpg`.
      said: stem -> for each of its paintings the answers. Prompts that are missing count 0, which the official code
        leaves out.

    Returns:
      "score" with its 95% "interval", "prompts", "missing", and "by" category: of single questions over all paintings,
      dependencies aside (the official code looks at the last painting alone).
    """
    scores = np.zeros(len(questions))
    for i, (stem, checks) in enumerate(questions.items()):
        if stem in said:
            scores[i] = np.mean([dpg_score(checks, one) for one in said[stem]])
    categories: dict[str, list[bool]] = defaultdict(list)
    for stem, paintings in said.items():
        for one in paintings:
            for check, answer in zip(questions[stem], one, strict=True):
                categories[check.category.split("-")[0].strip()].append(answer)
    return {
        "score": 100 * float(scores.mean()),
        "interval": [100 * bound for bound in mean_interval(scores)],
        "prompts": len(questions),
        "missing": [stem for stem in questions if stem not in said],
        "by": {name: 100 * float(np.mean(values)) for name, values in sorted(categories.items())},
    }


def dpg_pictures(file: Path, folder: Path) -> Pictures:
    """The quarters of every grid in a folder that `dpg_bench.csv` has questions about."""
    questions = read_dpg(file)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.split(".")[0] in questions)
    found = [Picture(path.name.split(".")[0], path, number) for path in files for number in range(COPIES)]
    return Pictures(questions, found, lambda said: dpg_summary(questions, said))


# -- GenEval --


def geneval_pictures(file: Path, folder: Path) -> Pictures:
    """The samples of every line of `evaluation_metadata.jsonl` that a folder has."""
    records = [record for _, record in read_lines(file)]
    checks = {number: geneval_checks(record) for number, record in enumerate(records)}
    found = [
        Picture(number, path)
        for number in checks
        for path in sorted((folder / f"{number:05d}" / "samples").glob("*.png"))
        if path.stem.isdigit()
    ]
    return Pictures(checks, found, lambda said: geneval_summary(records, said))


def geneval_checks(record: Mapping[str, Any]) -> list[Check]:
    """What a line of GenEval's metadata asks of a picture, as questions: a picture is right if all answers are yes.

    Raises:
      ValueError: on a line without "include".
    """
    include = record.get("include")
    if not isinstance(include, list) or not include:
        raise ValueError(f'no "include" in {json.dumps(record)[:80]}')
    checks = []
    for wanted in include:
        name, count = wanted["class"], int(wanted.get("count", 1))
        if count == 1:
            checks.append(f"Is there {_one(name)} in this picture?")
        else:
            checks.append(f"Are there exactly {count} {name}s in this picture?")
        if color := wanted.get("color"):
            checks.append(f"Is the {name} {color}?")
        if position := wanted.get("position"):
            relation, of = position
            relation = f"to the {relation}" if relation in ("left of", "right of") else relation
            checks.append(f"Is the {name} {relation} the {include[of]['class']}?")
    return [Check(text, number, category=str(record.get("tag", ""))) for number, text in enumerate(checks, start=1)]


def geneval_summary(records: Sequence[Mapping[str, Any]], said: Mapping[int, Answers]) -> dict[str, Any]:
    """The benchmark's figures: accuracy over pictures by tag, and the plain mean of the tags.

    Args:
      records: lines of the metadata.
      said: number of a line -> for each of its pictures the answers; a line without any counts as wrong.

    Returns:
      "score", "by" tag, "pictures" and "missing".
    """
    tags: dict[str, list[bool]] = defaultdict(list)
    for number, record in enumerate(records):
        tags[str(record.get("tag", ""))] += [all(answers) for answers in said.get(number, ())] or [False]
    accuracies = {tag: float(np.mean(values)) for tag, values in tags.items()}
    return {
        "score": float(np.mean(list(accuracies.values()))),
        "by": accuracies,
        "pictures": sum(map(len, said.values())),
        "missing": [number for number in range(len(records)) if number not in said],
    }


def _one(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
