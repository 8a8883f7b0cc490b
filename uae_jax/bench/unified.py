"""Unified-Bench: how alike references and their reconstructions are to four scorers, in the published structure.

A score is the raw cosine of two feature vectors, each image prepared as the scorer's own processor does it; a scorer's
average is over all valid pairs; the overall score is the plain mean of the averages of the four scorers, or of those of
the four that there are. Scorers of other names are reported beside it. Letters: N references.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uae_jax.bench.intervals import mean_interval
from uae_jax.bench.pairing import Pairing
from uae_jax.data.images import ImageError, open_image
from uae_jax.rewards.reconstruction import UNIFIED, counted
from uae_jax.rewards.scorers import Scorer

WINDOW = 32  # pairs that are open at a time
OWN = "uae_jax"  # key of what the published structure has no place for
Scores = dict[str, dict[str, float | None]]  # scorer -> name of a reference -> cosine, None where there is none
Progress = Callable[[int], None]  # called with the number of pairs done


def score(pairing: Pairing, scorers: Mapping[str, Scorer], progress: Progress) -> tuple[Scores, dict[str, str]]:
    """Scores all pairs.

    Returns:
      the scores, None for missing and unreadable images; and name of a reference -> why its pair could not be read.
    """
    scores: Scores = {scorer: dict.fromkeys(pairing.missing) for scorer in scorers}
    unreadable, names = {}, list(pairing.pairs)
    for start in range(0, len(names), WINDOW):
        some = names[start : start + WINDOW]
        opened: dict[str, tuple[Image.Image, Image.Image]] = {}
        for name in some:
            try:
                reference, painting = pairing.pairs[name]
                opened[name] = open_image(reference), open_image(painting)
            except ImageError as error:
                unreadable[name] = str(error)
        for scorer, judge in scorers.items():
            values = judge.similarity([a for a, _ in opened.values()], [b for _, b in opened.values()], WINDOW)
            found = dict(zip(opened, map(float, values), strict=True))
            scores[scorer] |= {name: found.get(name) for name in some}
        progress(len(some))
    return {scorer: dict(sorted(values.items())) for scorer, values in scores.items()}, unreadable


def result(scores: Scores, pairing: Pairing, unreadable: Mapping[str, str], about: Mapping[str, Any]) -> dict[str, Any]:
    """The whole record of a run.

    Args:
      scores, unreadable: of `score`.
      pairing: what was scored.
      about: what else is to be kept: models, folders, settings.

    Returns:
      the published keys, and under "uae_jax" what they have no place for: `about`, missing and unreadable pairs,
      95% intervals, which scorers the overall score is of, and whether these are all four, and all pairs are scored.

    Raises:
      ValueError: if not one pair could be scored.
    """
    valid = [name for name in pairing.pairs if name not in unreadable]
    if not valid:
        raise ValueError(
            f"none of {len(pairing.pairs) + len(pairing.missing)} references has a painting that is fit to see"
        )
    statistics = {scorer: _statistics(values) for scorer, values in scores.items()}
    averages = {scorer: row["average_similarity"] for scorer, row in statistics.items()}
    ranked = sorted(averages.items(), key=lambda item: item[1])
    counts = counted(scores)
    overall = np.array([np.mean([scores[scorer][name] for scorer in counts]) for name in valid])
    return {
        "model_types": list(scores),
        "similarities_by_model": scores,
        "statistics_by_model": statistics,
        "summary": {
            "models_used": list(scores),
            "average_scores_by_model": averages,
            "overall_average": float(np.mean([averages[scorer] for scorer in counts])),
            "best_model": list(ranked[-1]),
            "worst_model": list(ranked[0]),
        },
        OWN: {
            **about,
            "all_scorers": counts == UNIFIED,
            "overall_of": list(counts),
            "all_pairs": len(valid) == len(pairing.pairs) + len(pairing.missing),
            "missing": list(pairing.missing),
            "unreadable": dict(unreadable),
            "unused": [str(file) for file in pairing.unused],
            "interval_by_model": {
                scorer: mean_interval(np.array([values[name] for name in valid])) for scorer, values in scores.items()
            },
            "overall_interval": mean_interval(overall),
        },
    }


def _statistics(values: Mapping[str, float | None]) -> dict[str, float | int]:
    there = [value for value in values.values() if value is not None]
    return {
        "total_images": len(values),
        "valid_pairs": len(there),
        "average_similarity": float(np.mean(there)),
        "min_similarity": min(there),
        "max_similarity": max(there),
    }


def check(record: Any, file: Path | str) -> Scores:
    """The scores in a record, ours or one that the published code or a port of it wrote; NaN is none, as null is.

    Raises:
      ValueError: if they are not in it, or one is no number.
    """
    scores = record.get("similarities_by_model") if isinstance(record, dict) else None
    fine = isinstance(scores, dict) and all(isinstance(values, dict) for values in scores.values())
    if not (fine and scores):
        raise ValueError(
            f"{file} has no similarities_by_model; wanted what `uae bench unified` or Unified-Bench writes"
        )
    return {
        scorer: {name: _number(value, f"{file}: {scorer} of {name}") for name, value in values.items()}
        for scorer, values in scores.items()
    }


def _number(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
        raise ValueError(f"{what} is {value!r}, wanted a finite number, or null or NaN where there is none")
    return None if math.isnan(value) else float(value)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How the second of two records differs from the first; of each pair of values the first is of the first record.

    Attributes:
      rows: scorer, or "overall" -> "pairs", "first", "second", "difference", and its 95% "interval".
      overall_of: scorers whose mean "overall" is.
      lacking: pairs that are left out: name -> scorers, of those that both have, without a score of it.
      alone: scorers that only one has.
    """

    rows: dict[str, dict[str, Any]]
    overall_of: tuple[str, ...]
    lacking: tuple[dict[str, list[str]], dict[str, list[str]]]
    alone: tuple[list[str], list[str]]

    def to_json(self) -> dict[str, Any]:
        """The rows, and all else under "uae_jax"."""
        own = {
            "all_scorers": self.overall_of == UNIFIED,
            "overall_of": list(self.overall_of),
            "left_out": dict(zip(("first", "second"), self.lacking, strict=True)),
            "not_shared": dict(zip(("first", "second"), self.alone, strict=True)),
        }
        return {**self.rows, OWN: own}


def compare(first: Scores, second: Scores) -> Comparison:
    """Compares two records on the pairs that every scorer that both have has scored in both.

    Raises:
      ValueError: if they share no scorer, or no pair.
    """
    shared = [scorer for scorer in first if scorer in second]
    if not shared:
        raise ValueError(f"no scorer in common: {', '.join(first)} and {', '.join(second)}")
    names = list(dict.fromkeys(name for scores in (first, second) for s in shared for name in scores[s]))
    lacking = tuple(_lacking(scores, shared, names) for scores in (first, second))
    both = [name for name in names if not any(name in lacks for lacks in lacking)]
    if not both:
        raise ValueError("no pair that both have scored; wanted two runs over the same references")
    rows = {s: np.array([[scores[s][name] for name in both] for scores in (first, second)]) for s in shared}
    counts = counted(shared)
    rows["overall"] = np.mean([rows[scorer] for scorer in counts], axis=0)
    found = {
        name: {
            "pairs": len(both),
            "first": float(row[0].mean()),
            "second": float(row[1].mean()),
            "difference": float((row[1] - row[0]).mean()),
            "interval": mean_interval(row[1] - row[0]),
        }
        for name, row in rows.items()
    }
    alone = tuple([s for s in scores if s not in shared] for scores in (first, second))
    return Comparison(found, counts, lacking, alone)


def _lacking(scores: Scores, shared: list[str], names: list[str]) -> dict[str, list[str]]:
    found = {name: [scorer for scorer in shared if scores[scorer].get(name) is None] for name in names}
    return {name: scorers for name, scorers in found.items() if scorers}
