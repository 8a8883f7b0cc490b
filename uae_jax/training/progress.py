"""How far a run is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import tqdm

_LINE_SECONDS = 30.0  # between two lines where there is no terminal
_LINE_FRACTION = 0.1  # of all steps: likewise, whichever comes first
_MOST = 3  # metrics that are shown where none are named
_NOT_SHOWN = ("grad_norm", "nonfinite", "nonfinite_steps", "learning_rate", "waited_for_data", "compiled_programs")
_NOT_SHOWN += ("steps_per_second",)


class Progress:
    """Shows stage, step, rate, time left, loss and a few metrics.

    Devices work behind the program that hands them their steps, so the rate is that of steps that are known to be done,
    see `settled`, since the first was handed out: neither compilation nor what was done before a resume counts.

    Args:
      stage: its name.
      total: steps in all.
      start: steps that were done before.
      quiet: shows notes only.
      shown: metrics to show; () for the loss and the next two that there are.
      file: where to, stderr by default.
      clock: seconds, from any origin.
    """

    def __init__(
        self,
        stage: str,
        total: int,
        start: int = 0,
        *,
        quiet: bool = False,
        shown: Sequence[str] = (),
        file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stage, self._total, self._at = stage, total, start
        self._quiet, self._shown = quiet, tuple(shown)
        self._file = sys.stderr if file is None else file
        self._clock = clock
        self._begun = clock()
        self._first: tuple[int, float] | None = None  # step and time from which the rate counts
        self._settled: tuple[int, float] | None = None  # and to which
        self._now = self._begun
        self._metrics: dict[str, float] = {}
        self._line_at, self._line_time = start, self._begun
        self._bar = self._make_bar() if self._on_terminal() and not quiet else None

    def step(self, number: int) -> None:
        """Says that step `number`, counted from 1, was handed out: the first of all once it was compiled."""
        self._at, self._now = number, self._clock()
        if self._first is None:
            self._first = (number - 1, self._now)
            if self._bar is None and not self._quiet:
                self._print(f"{self._stage}: first step after {self._now - self._begun:.1f} s")
        if self._bar is not None:
            self._bar.set_postfix_str(self._tail(), refresh=False)
            self._bar.update(number - self._bar.n)
        elif not self._quiet and self._is_time():
            self._line()

    def settled(self) -> None:
        """Says that all steps that were handed out are done."""
        self._now = self._clock()
        self._settled = (self._at, self._now)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Shows these from now on."""
        names = self._shown or ["loss", *(n for n in values if n != "loss" and n not in _NOT_SHOWN)][:_MOST]
        self._metrics = {name: values[name] for name in names if name in values}
        if self._bar is not None:
            self._bar.set_postfix_str(self._tail())

    def note(self, message: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            tqdm.tqdm.write(message, file=self._file)
        else:
            self._print(message)

    def rate(self) -> float:
        """Steps per second of this run; NaN before any are known to be done."""
        if self._first is None or self._settled is None:
            return math.nan
        return (self._settled[0] - self._first[0]) / max(self._settled[1] - self._first[1], 1e-9)

    def time_left(self) -> float:
        """Seconds to the last step; NaN while the rate is not known."""
        if self._settled is None:
            return math.nan
        number, time = self._settled
        return max((self._total - number) / self.rate() - (self._now - time), 0.0)

    def close(self) -> None:
        """Leaves the last state of the bar standing."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._quiet and self._line_at < self._at:
            self._line()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def _on_terminal(self) -> bool:
        return getattr(self._file, "isatty", lambda: False)()

    def _make_bar(self) -> tqdm.tqdm:
        return tqdm.tqdm(
            total=self._total,
            initial=self._at,
            desc=self._stage,
            file=self._file,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}",
        )

    def _tail(self) -> str:
        """Rate, time left and metrics."""
        parts = [format_rate(self.rate()), f"ETA {format_time(self.time_left())}"]
        return "  ".join([*parts, *(f"{name} {value:.4g}" for name, value in self._metrics.items())])

    def _is_time(self) -> bool:
        waited = self._now - self._line_time >= _LINE_SECONDS
        return waited or self._at - self._line_at >= _LINE_FRACTION * self._total or self._at == self._total

    def _line(self) -> None:
        self._line_at, self._line_time = self._at, self._now
        percent = 100 * self._at / max(self._total, 1)
        self._print(f"{self._stage}: step {self._at}/{self._total} ({percent:.0f}%)  {self._tail()}")

    def _print(self, message: str) -> None:
        print(message, file=self._file, flush=True)


def format_rate(rate: float) -> str:
    """Steps per second, or seconds per step where it takes longer."""
    if math.isnan(rate):
        return "? it/s"
    return f"{rate:.3g} it/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.3g} s/it"


def format_time(seconds: float) -> str:
    """12:34, or 1:23:45."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
