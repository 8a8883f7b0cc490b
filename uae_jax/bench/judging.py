"""DPG-Bench and GenEval judged by our encoder as a question answerer: another judge than the official ones.

DPG-Bench's official questions are asked and its rule for dependent questions kept (ELLA, `compute_dpg_bench.py`), with
our encoder in place of mPLUG-VQA. GenEval has no questions, only what a picture must hold; each of these becomes one or
two, in place of Mask2Former and CLIP. Figures compare with each other, never with published ones.
"""

import csv
import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax.bench.asking import Item
from uae_jax.bench.grids import COPIES
from uae_jax.bench.intervals import mean_interval, stratified_interval
from uae_jax.bench.layouts import read_lines
from uae_jax.bench.things import several, thing

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
      summary: makes figures of answers, key -> for each readable picture its answers, and of the keys of unreadable
        pictures, one for each.
    """

    checks: Mapping[Any, Sequence[Check]]
    found: Sequence[Picture]
    summary: Callable[[Mapping[Any, Answers], Sequence[Any]], dict[str, Any]]

    @property
    def items(self) -> list[Item]:
        """Every question about every picture."""
        return [Item(p.file, check.asked, p.quarter) for p in self.found for check in self.checks[p.key]]

    def judged(self, told: Mapping[int, str]) -> dict[str, Any]:
        """Figures.

        Args:
          told: number of an item -> its answer; none where its picture is unreadable.

        Returns:
          what `summary` makes, and "unreadable", files.
        """
        said: dict[Any, list[list[bool]]] = defaultdict(list)
        unreadable, number = [], 0
        for picture in self.found:
            numbers = range(number, number + len(self.checks[picture.key]))
            if all(i in told for i in numbers):
                said[picture.key].append([yes(told[i]) for i in numbers])
            else:
                unreadable.append(picture)
            number = numbers.stop
        figures = self.summary(said, [picture.key for picture in unreadable])
        return {**figures, "unreadable": list(dict.fromkeys(str(picture.file) for picture in unreadable))}


def yes(said: str) -> bool:
    """Whether an answer begins with yes."""
    return re.match(r"\W*yes\b", said, re.IGNORECASE) is not None


def table(found: Mapping[str, Any], benchmark: str) -> str:
    """A line for each part, one for the score, and what is amiss."""
    low, high = found["interval"]
    lines = [f"{value:8.3f}  {name}" for name, value in found["by"].items()]
    lines.append(f"{found['score']:8.3f}  {benchmark} (95% {low:.3f} to {high:.3f}), judged by {found['judge']}")
    lines.append(f"{len(found['missing']):8}  prompts without a readable picture, which count as wrong")
    for name, told in (
        ("unreadable", "files that cannot be read"),
        ("left_out", "prompts left out, whose questions depend on one that there is not, as the official code does"),
    ):
        if names := found.get(name):
            lines.append(f"{len(names):8}  {told}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
    return "\n".join(lines)


# -- DPG-Bench --


def read_dpg(file: Path) -> dict[str, list[Check]]:
    """Stem of a prompt -> its questions, in the order of `dpg_bench.csv`.

    The first row of data is left out, as the official code does, although it is a question of the first prompt; others
    may depend on it, see `lacking`.

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


def lacking(questions: Mapping[str, Sequence[Check]]) -> list[str]:
    """Prompts with a question that depends on one that there is not.

    The official code fails at such a prompt's picture, says so, and goes on without it, so that it is in no figure.
    """
    numbers = {stem: {check.number for check in checks} for stem, checks in questions.items()}
    return [stem for stem, checks in questions.items() if any(set(c.parents) - numbers[stem] for c in checks)]


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
    """The quarters of every grid in a folder that `dpg_bench.csv` has questions about.

    Prompts of `lacking` are left out; figures name them, under "left_out".

    Raises:
      ValueError: if none is left.
    """
    whole = read_dpg(file)
    left_out = lacking(whole)
    questions = {stem: checks for stem, checks in whole.items() if stem not in left_out}
    if not questions:
        raise ValueError(f"{file} has no prompt whose questions depend on none but its own; wanted dpg_bench.csv whole")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.split(".")[0] in questions)
    found = [Picture(path.name.split(".")[0], path, number) for path in files for number in range(COPIES)]
    return Pictures(questions, found, lambda said, _: {**dpg_summary(questions, said), "left_out": left_out})


# -- GenEval --


def geneval_pictures(file: Path, folder: Path) -> Pictures:
    """The samples of every line of `evaluation_metadata.jsonl` that a folder has, however many and of how many digits.

    Raises:
      ValueError: on a line that is not of GenEval.
    """
    records = [record for _, record in read_lines(file)]
    checks = {}
    for number, record in enumerate(records):
        try:
            checks[number] = geneval_checks(record)
        except (KeyError, IndexError, TypeError, ValueError):
            told = json.dumps(record.get("include"))
            raise ValueError(
                f'{file}: "include" of prompt {number:05d} is {told[:80]}, not as GenEval has it'
            ) from None
    files = [path for path in sorted(folder.glob("*/samples/*.png")) if path.stem.isdecimal()]
    keys = [path.parts[-3] for path in files]
    found = [Picture(int(key), path) for key, path in zip(keys, files, strict=True) if key.isdecimal()]
    found = [picture for picture in found if picture.key in checks]
    return Pictures(checks, found, lambda said, unreadable: geneval_summary(records, said, unreadable))


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
            checks.append(f"Is there {_one(thing(name))} in this picture?")
        else:
            checks.append(f"Are there exactly {count} {several(name)} in this picture?")
        subject = f"Is the {thing(name)}" if count == 1 else f"Are the {several(name)}"
        if color := wanted.get("color"):
            checks.append(f"{subject} {color}?")
        if position := wanted.get("position"):
            relation, of = position
            relation = f"to the {relation}" if relation in ("left of", "right of") else relation
            checks.append(f"{subject} {relation} the {thing(include[of]['class'])}?")
    return [Check(text, number, category=str(record.get("tag", ""))) for number, text in enumerate(checks, start=1)]


def geneval_summary(
    records: Sequence[Mapping[str, Any]], said: Mapping[int, Answers], unreadable: Sequence[int] = ()
) -> dict[str, Any]:
    """The benchmark's figures: accuracy over pictures by tag, and the plain mean of the tags.

    The interval is that of drawing prompts anew within each tag, with all their pictures: tags are chosen and count
    alike, and pictures of one prompt are right or wrong together more often than others.

    Args:
      records: lines of the metadata.
      said: number of a line -> for each of its pictures the answers; a line without any counts as wrong.
      unreadable: number of the line for each picture that cannot be read, which counts as wrong. How many pictures a
        line has is nothing that is asked for, as in the official evaluation.

    Returns:
      "score" with its 95% "interval", "by" tag, "pictures" and "missing", lines without a readable picture.
    """
    wrong = Counter(unreadable)
    results: dict[str, list[list[bool]]] = defaultdict(list)  # of each prompt of a tag, its pictures
    for number, record in enumerate(records):
        pictures = [all(answers) for answers in said.get(number, ())] + [False] * wrong[number]
        results[str(record.get("tag", ""))].append(pictures or [False])
    shares = [[float(np.mean(pictures)) for pictures in prompts] for prompts in results.values()]
    counts = [[len(pictures) for pictures in prompts] for prompts in results.values()]
    accuracies = {tag: float(np.mean(np.concatenate(prompts))) for tag, prompts in results.items()}
    return {
        "score": float(np.mean(list(accuracies.values()))),
        "interval": stratified_interval(shares, counts),
        "by": accuracies,
        "pictures": sum(map(len, said.values())) + len(unreadable),
        "missing": [number for number in range(len(records)) if number not in said],
    }


def _one(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
