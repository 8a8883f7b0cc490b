"""Axes: where a value lies on a drawing, which values are marked, and how numbers are written."""

import dataclasses
import math
from collections.abc import Iterable, Sequence

LEFT, RIGHT, TOP, BOTTOM = 58, 22, 20, 34  # pixels around what is plotted
MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"
_TICKS = 5  # at most so many gaps between marks
_LOG_SPAN = 300  # largest over smallest value from which a logarithmic axis is worth it


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
      low, high: values at its ends, low < high.
      ticks: values that are marked, within them.
      log: whether equal factors are equally far apart.
    """

    low: float
    high: float
    ticks: Sequence[float]
    log: bool = False

    def part(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclasses.dataclass(frozen=True)
class Frame:
    """A drawing of width x height pixels, y downwards, and its axes."""

    width: int
    height: int
    across: Axis
    up: Axis

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return LEFT + self.across.part(value) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return self.height - BOTTOM - self.up.part(value) * (self.height - TOP - BOTTOM)


def value_axis(values: Iterable[float], log: bool = False) -> Axis:
    """An axis with round ends that holds all finite values; logarithmic if `log` and they span powers of ten."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if log and low > 0 and high / low >= _LOG_SPAN:
        return _log_axis(low, high)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        low, high = (low - abs(low) * 0.1, high + abs(low) * 0.1) if low else (0.0, 1.0)
    step = round_step((high - low) / _TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, [number * step for number in range(first, last + 1)])


def step_axis(last: float) -> Axis:
    """The axis of training steps from 0 to the last one, with round steps marked."""
    last = max(last, 1)
    step = max(1.0, round_step(last / _TICKS))
    return Axis(0, last, [number * step for number in range(math.floor(last / step + 1e-9) + 1)])


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5, times a power of ten, that is not below `least` > 0."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least * (1 - 1e-9)), 10 * power)


def _log_axis(low: float, high: float) -> Axis:
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    every = -(-(last - first) // _TICKS)
    return Axis(10.0**first, 10.0**last, [10.0**power for power in range(first, last + 1, every)], log=True)


def tick_labels(axis: Axis) -> list[str]:
    """How the marks of an axis are written: all with as many decimals as they need to differ."""
    largest = max(abs(tick) for tick in axis.ticks)
    if axis.log or not 1e-3 <= largest < 1e7:
        return ["0" if tick == 0 else _scientific(tick) for tick in axis.ticks]
    gap = axis.ticks[1] - axis.ticks[0] if len(axis.ticks) > 1 else largest
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return [_minus(f"{tick + 0.0:,.{decimals}f}") for tick in axis.ticks]


def number(value: float) -> str:
    """A value for people: four digits, thousands set apart."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e7:
        return _scientific(value)
    written = f"{value:,.{_decimals(value)}f}"
    return _minus(written.rstrip("0").rstrip(".") if "." in written and float(value).is_integer() else written)


def signed(change: float, to: float) -> str:
    """A change for people, with the decimals of the value that it led to; smaller ones with as many as they need."""
    written = f"{change:+,.{_decimals(to)}f}" if 1e-3 <= abs(to) < 1e7 else "0"
    if any(digit in written for digit in "123456789"):
        return _minus(written)
    return ("+" if change > 0 else "") + number(change)


def _decimals(value: float) -> int:
    """So many that there are four digits."""
    return max(0, 3 - math.floor(math.log10(abs(value))))


def _scientific(value: float) -> str:
    mantissa, power = f"{value:.2e}".split("e")
    return _minus(f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}")


def _minus(written: str) -> str:
    return written.replace("-", MINUS)
