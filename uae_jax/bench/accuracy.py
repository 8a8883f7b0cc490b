"""How many questions about images are answered rightly, by task, and whether one model answers more than another."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uae_jax.bench.intervals import mean_interval, mean_share_interval, proportion_interval, stratified_interval
from uae_jax.bench.questions import Question, right
from uae_jax.bench.replies import letter

Row = dict[str, Any]


def summary(questions: Sequence[Question], said: Mapping[int, str]) -> Row:
    """Accuracy, overall and by task.

    Args:
      questions: all of them.
      said: number of a question -> its reply; one that has none, its image being unreadable, counts as wrong.

    Returns:
      "questions", "unanswered", "undecided" (no letter could be read off), "accuracy" with its 95% "interval", "tasks"
      with the same of each, "task_mean", their plain mean as MMT-Bench has it, with "task_mean_interval", and "judged":
      task -> key of a question -> whether it is right, for `compare`.
    """
    judged: dict[str, dict[str, bool]] = {task: {} for task in sorted({question.task for question in questions})}
    seen: Counter[tuple[str, str]] = Counter()
    for number, question in enumerate(questions):
        seen[question.task, question.key] += 1
        again = seen[question.task, question.key]
        key = question.key if again == 1 else f"{question.key}-{again}"
        judged[question.task][key] = number in said and right(question, said[number])
    undecided = [
        i for i, asked in enumerate(questions) if i in said and asked.choices and letter(said[i], asked.choices) is None
    ]
    tasks = {task: _accuracy(list(results.values())) for task, results in judged.items()}
    return {
        **_accuracy([result for results in judged.values() for result in results.values()]),
        "unanswered": len(questions) - len(said),
        "undecided": len(undecided),
        "tasks": tasks,
        "task_mean": float(np.mean([row["accuracy"] for row in tasks.values()])),
        "task_mean_interval": mean_share_interval([(sum(one.values()), len(one)) for one in judged.values()]),
        "judged": judged,
    }


def _accuracy(results: Sequence[bool]) -> Row:
    interval = proportion_interval(sum(results), len(results))
    return {"questions": len(results), "accuracy": float(np.mean(results)), "interval": interval}


def table(found: Row) -> str:
    """A line for each task, their mean, and all questions."""
    lines = [_line(row["accuracy"], row["interval"], row["questions"], _name(t)) for t, row in found["tasks"].items()]
    lines.append(_line(found["task_mean"], found["task_mean_interval"], len(found["tasks"]), "tasks' mean"))
    lines.append(_line(found["accuracy"], found["interval"], found["questions"], "all questions"))
    lines.append(f"{found['undecided']} replies name no choice, {found['unanswered']} questions have none")
    return "\n".join(lines)


def _line(value: float, interval: Sequence[float], count: int, name: str) -> str:
    low, high = interval
    return f"{value:8.3f}  [{low:.3f}, {high:.3f}]{count:7}  {name}"


def _name(task: str) -> str:
    return task or "(no task)"


def is_summary(record: Any) -> bool:
    """Whether a record of JSON is one of `summary`."""
    return isinstance(record, dict) and "task_mean" in record


def compare(first: Row, second: Row) -> Row:
    """Paired comparison of two summaries, second minus first, on the questions that both have.

    Args:
      first, second: of `summary`, over the same questions, or some that are the same.

    Returns:
      "overall", "task_mean", and "tasks" by name, each with "questions", "first", "second", "difference" and its 95%
      "interval"; and "alone", how many questions only the first has, and only the second.

    Raises:
      ValueError: if they share no question, or do not say which was answered rightly.
    """
    if not all(isinstance(record.get("judged"), dict) for record in (first, second)):
        raise ValueError('no "judged" in a summary, an earlier version wrote it; run `uae bench vqa` again')
    judged = first["judged"], second["judged"]
    pairs = {}
    for task, results in judged[0].items():
        both = [(results[key], judged[1][task][key]) for key in results if key in judged[1].get(task, {})]
        if both:
            pairs[task] = np.array(both, np.float64)
    if not pairs:
        raise ValueError("no question in common; wanted two runs over the same questions")
    differences = [rows[:, 1] - rows[:, 0] for rows in pairs.values()]
    means = np.array([rows.mean(axis=0) for rows in pairs.values()])
    together = np.concatenate(list(pairs.values()))
    counts = [sum(map(len, one.values())) for one in judged]
    return {
        "overall": _difference(together),
        "task_mean": _difference(means) | {"questions": len(together), "interval": stratified_interval(differences)},
        "tasks": {task: _difference(rows) for task, rows in pairs.items()},
        "alone": [count - len(together) for count in counts],
    }


def _difference(rows: np.ndarray) -> Row:
    """Of results, f[N, 2], of the first and of the second."""
    first, second = map(float, rows.mean(axis=0))
    interval = mean_interval(rows[:, 1] - rows[:, 0])
    return {
        "questions": len(rows),
        "first": first,
        "second": second,
        "difference": second - first,
        "interval": interval,
    }


def compared_table(found: Row) -> str:
    """A line for each task, their mean, and all questions."""
    rows = {_name(task): row for task, row in found["tasks"].items()}
    rows |= {"tasks' mean": found["task_mean"], "all questions": found["overall"]}
    lines = [f"{'first':>8}{'second':>8}{'difference':>12}  {'95% interval':18}{'questions':>9}"]
    for name, row in rows.items():
        low, high = row["interval"]
        sure = f"[{low:+.3f}, {high:+.3f}]"
        change = f"{row['first']:8.3f}{row['second']:8.3f}{row['difference']:+12.3f}"
        lines.append(f"{change}  {sure:18}{row['questions']:9}  {name}")
    if any(found["alone"]):
        lines.append(
            f"not compared: {found['alone'][0]} questions of the first alone, {found['alone'][1]} of the second"
        )
    return "\n".join(lines)
