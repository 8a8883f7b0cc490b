"""Steps whose loss or gradient was no number: counted, named, and at some point too many."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from uae_jax.errors import RunError
from uae_jax.training.metrics import Reading

_SHOWN = 8  # samples that a message names
_KEPT = 1000  # samples whose count is remembered


class NonFiniteError(RunError):
    """Too many steps in a row changed nothing; the message names them and their samples."""


class BadSteps:
    """Counts bad steps and the samples that were in them.

    Attributes:
      count: bad steps in all.
      in_a_row: bad steps up to the last one seen.
      samples: id -> how often it was among the suspects of a bad step: the samples whose own loss was no number or,
        where no loss says so, all samples of the step.
    """

    def __init__(self, max_in_a_row: int):
        self.max_in_a_row = max_in_a_row
        self.count = 0
        self.in_a_row = 0
        self.samples: collections.Counter[str] = collections.Counter()
        self._recent: list[tuple[int, list[str]]] = []

    def update(self, readings: Iterable[Reading]) -> list[str]:
        """Looks at the readings of steps, in their order.

        Returns:
          a line for each bad step.

        Raises:
          NonFiniteError: once `max_in_a_row` steps in a row were bad.
        """
        messages = []
        for reading in readings:
            if not reading.metrics.get("nonfinite"):
                self.in_a_row, self._recent = 0, []
                continue
            if reading.metrics["nonfinite"] < 1:  # of several updates some were made
                self.in_a_row, self._recent = 0, []
            messages.append(self._bad(reading))
            if self.in_a_row >= self.max_in_a_row:
                raise NonFiniteError(self._explanation())
        return messages

    def _bad(self, reading: Reading) -> str:
        mask = np.asarray(reading.metrics.get("bad_examples", ()), bool)
        known = mask.any() and len(mask) == len(reading.ids)
        suspects = [str(i) for i, bad in zip(reading.ids, mask, strict=True) if bad] if known else list(reading.ids)
        share = float(reading.metrics["nonfinite"])
        self.count += 1
        if share == 1:
            self.in_a_row += 1
            self._recent.append((reading.step, suspects))
        for name in suspects:
            if name in self.samples or len(self.samples) < _KEPT:
                self.samples[name] += 1
        which = "samples whose loss is no number" if known else "one of its samples"
        lost = "nothing was updated" if share == 1 else f"{share:.0%} of its updates were left out"
        return (
            f"step {reading.step}: loss or gradient is no finite number, {lost} "
            f"({self.in_a_row} in a row, {self.count} in all); {which}: {_listed(suspects)}"
        )

    def _explanation(self) -> str:
        steps = [str(step) for step, _ in self._recent]
        names = list(dict.fromkeys(name for _, suspects in self._recent for name in suspects))
        span = steps[0] if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return (
            f"steps {span}: no finite loss and gradient {self.in_a_row} times in a row, nothing was updated by them; "
            f"samples: {_listed(names)}; lower optimiser.learning_rate, which the same --workdir goes on "
            "with, or look at these samples; the parameters are still those from before"
        )

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        recent = [[step, suspects[:_SHOWN]] for step, suspects in self._recent]
        return {"count": self.count, "in_a_row": self.in_a_row, "samples": dict(self.samples), "recent": recent}

    @classmethod
    def from_json(cls, value: dict[str, Any] | None, max_in_a_row: int) -> "BadSteps":
        """Goes on from what `to_json` gave; from nothing where it is None."""
        counts = cls(max_in_a_row)
        if value is not None:
            counts.count, counts.in_a_row = value["count"], value["in_a_row"]
            counts.samples.update(value["samples"])
            counts._recent = [(step, suspects) for step, suspects in value["recent"]]
        return counts


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "unknown"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
