"""What a run measures: fetched from devices once in a while, kept as JSON lines, shown by TensorBoard."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from uae_jax import paths
from uae_jax.parallel import global_arrays
from uae_jax.training.tensorboard import TensorBoardWriter

FILE = "metrics.jsonl"
ASIDE = "metrics.before.jsonl"
EVENTS = "tensorboard"
_UPLOAD_SECONDS = 300  # between two uploads to a bucket; each holds up the steps
Array = Any


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one step measured, on the host.

    Attributes:
      step: its number.
      metrics: name -> number, or array with one value for each sample of the batch.
      ids: names of the step's samples; of this process's only, where nobody has asked the others.
    """

    step: int
    metrics: dict[str, Any]
    ids: Sequence[str] = ()


class Averages:
    """Keeps the metrics of steps on their devices until somebody asks, so that steps need not wait for the host."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Mapping[str, Array], Sequence[str]]] = []

    def add(self, step: int, metrics: Mapping[str, Array], ids: Sequence[str] = ()) -> None:
        """Takes a step's metrics, name -> f32[] or [B]; waits for nothing."""
        self._kept.append((step, metrics, ids))

    def flush(self) -> tuple[list[Reading], dict[str, float]]:
        """Fetches what was added since the last call, in one go; all processes at once.

        Returns:
          a reading of each step; and name -> mean over these steps, for metrics that are single numbers. Steps that
          say "nonfinite" count in the mean of that metric only: they changed nothing, and would hide all others.
        """
        kept, self._kept = self._kept, []
        fetched = global_arrays.to_host([dict(metrics) for _, metrics, _ in kept])
        readings = [
            Reading(step, {name: _number(value) for name, value in metrics.items()}, ids)
            for (step, _, ids), metrics in zip(kept, fetched, strict=True)
        ]
        return readings, _means(readings)


def _number(value: Any) -> Any:
    return float(value) if np.ndim(value) == 0 else value


def _means(readings: Sequence[Reading]) -> dict[str, float]:
    fine = [reading for reading in readings if reading.metrics.get("nonfinite", 0) < 1] or readings
    names = {name: None for reading in readings for name, value in reading.metrics.items() if np.ndim(value) == 0}
    means = {}
    for name in names:
        of = readings if name == "nonfinite" else fine
        values = [reading.metrics[name] for reading in of if name in reading.metrics]
        if values:
            means[name] = float(np.mean(values))
    return means


class MetricsWriter:
    """Writes a run's metrics as `metrics.jsonl` and TensorBoard events, each step once however often it is resumed.

    A line holds "step", "time" (seconds since 1970) and name -> number; of numbers that JSON has not, NaN is null and
    the infinities are "inf" and "-inf". Only the first process of a run writes. What cannot be written, on a full disk,
    ends no run: it is reported, kept, and written as soon as that is possible. To a bucket, which takes files as a
    whole, all goes with each checkpoint, and every five minutes.

    Args:
      workdir: of the run, local or remote; made if it is not there.
      history: lines up to `step` that the checkpoint kept; None takes them from the file that is there.
      step: that the run goes on from; lines of later steps, which it will do again, are cut off.
      report: called with one line when something cannot be written.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        history: Sequence[dict[str, Any]] | None = None,
        step: int = 0,
        report: Callable[[str], None] | None = None,
    ):
        self._folder = epath.Path(workdir)
        self._file = self._folder / FILE
        self._report = report
        self._remote, self._uploaded = paths.is_remote(self._folder), time.monotonic()
        self._events: TensorBoardWriter | None = None
        self._handle: Any = None
        self._step, self._resumed_from = step, step or None
        before = read_history(self._folder) if history is None else history
        self._lines = [dict(line) for line in before if line["step"] <= step]
        self._first = jax.process_index() == 0
        self._attempt(step, self._rewrite)

    @property
    def history(self) -> list[dict[str, Any]]:
        """All lines so far, as they stand in the file; for the checkpoint to keep."""
        return list(self._lines)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line of numbers."""
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {name: to_json_number(float(value)) for name, value in values.items()}
        self._lines.append(line)
        self._step = step
        self._attempt(step, lambda: self._append(line))
        self._attempt(step, lambda: self._tensorboard().write_scalars(step, values))
        self._show(step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Shows images, name -> u8[H, W, 3], in TensorBoard."""
        self._attempt(step, lambda: self._tensorboard().write_images(step, images))
        self._show(step)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Shows texts, Markdown, in TensorBoard."""
        self._attempt(step, lambda: self._tensorboard().write_texts(step, texts))
        self._show(step)

    def flush(self) -> None:
        """Makes what was written visible to others; local files always are."""
        if self._handle is None and self._lines:
            self._attempt(self._step, self._rewrite)
        if self._remote:
            self._uploaded = time.monotonic()
            self._attempt(self._step, lambda: self._events and self._events.flush())

    def close(self) -> None:
        """Flushes and closes the files."""
        self.flush()
        for closable in (self._handle, self._events):
            if closable is not None:
                self._attempt(self._step, closable.close)
        self._handle = self._events = None

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _show(self, step: int) -> None:
        if not self._remote:
            self._attempt(step, lambda: self._tensorboard().flush())
        elif time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def _attempt(self, step: int, action: Callable[[], None]) -> None:
        if not self._first:
            return
        try:
            action()
        except OSError as error:
            self._forget()
            if self._report is not None:
                self._report(f"step {step}: metrics are not written to {self._folder} ({error}); will try again")

    def _forget(self) -> None:
        """Lets go of files that may end in the middle of something."""
        for closable in (self._handle, self._events):
            try:
                if closable is not None:
                    closable.close()
            except OSError:
                pass  # that is why
        self._handle = self._events = None

    def _append(self, line: dict[str, Any]) -> None:
        if self._handle is None:
            if not self._remote:  # remote files are written whole, when flushed
                self._rewrite()
            return
        self._handle.write(json.dumps(line) + "\n")
        self._handle.flush()

    def _rewrite(self) -> None:
        """Writes all lines anew; the file is the old one or the new one at every moment."""
        if not self._remote:
            self._folder.mkdir(parents=True, exist_ok=True)
        paths.write(self._file, "".join(json.dumps(line) + "\n" for line in self._lines))
        if not self._remote:
            self._handle = self._file.open("a")

    def _tensorboard(self) -> TensorBoardWriter:
        if self._events is None:
            self._events = TensorBoardWriter(self._folder / EVENTS, self._resumed_from)
            self._resumed_from = None
        return self._events


def set_aside(workdir: str | os.PathLike) -> int | None:
    """Keeps readings of a run that begins anew, `FILE` as `ASIDE`; returns the last one's step, None without any."""
    history = read_history(workdir)
    if not history:
        return None
    with paths.os_errors(workdir):
        (epath.Path(workdir) / FILE).replace(epath.Path(workdir) / ASIDE)
    return history[-1]["step"]


def read_history(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`; what a killed process left unfinished is passed over."""
    file = epath.Path(workdir) / FILE
    if not file.exists():
        return []
    lines = (_parsed(text) for text in file.read_text().splitlines())
    return [line for line in lines if line is not None]


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def to_json_number(value: float) -> float | str | None:
    """A number as JSON has it: NaN as null, infinities as "inf" and "-inf"."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def from_json_number(value: float | str | None) -> float:
    """The other way round."""
    return math.nan if value is None else float(value)


def column(history: Iterable[Mapping[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, where it was measured."""
    return [(line["step"], from_json_number(line[name])) for line in history if name in line]
