"""Tables and figures in numbers: what stages there are, and how far each metric came."""

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from uae_jax.html import text
from uae_jax.report import names
from uae_jax.report.names import EVALUATION, HEADLINES
from uae_jax.report.runs import Points, Run, working_time
from uae_jax.report.scales import NOTHING, number, signed

_TILES = 4
_SCORE = EVALUATION + "score/"


@dataclasses.dataclass(frozen=True)
class Change:
    """How far a metric came: (step, value) of its first reading and its last."""

    name: str
    first: tuple[int, float]
    last: tuple[int, float]

    @property
    def amount(self) -> float | None:
        """Last minus first; None where there is only one reading, or no number."""
        return _difference(self.first[1], self.last[1]) if self.first[0] != self.last[0] else None


def changes(run: Run) -> list[Change]:
    """Of all evaluation metrics; of a run that had no evaluation yet, those of training but for machinery."""
    measured = [name for name in run.names if name.startswith(EVALUATION)]
    if not measured:
        measured = [name for name in run.names if names.describe(name).group in names.GROUPS[:3]]
    points = {name: run.points(name) for name in sorted(measured, key=names.rank)}
    return [Change(name, readings[0], readings[-1]) for name, readings in points.items() if readings]


def stages(runs: Sequence[Run]) -> str:
    """A row for each stage: what, how far, how long, when."""
    rows = "".join(_stage_row(number, run) for number, run in enumerate(runs, 1))
    head = "".join(
        f"<th>{title}</th>" for title in ("stage", "kind", "state", "steps", "time", "first reading", "last")
    )
    return f'<div class="scroll"><table class="stages"><tr>{head}</tr>{rows}</table></div>'


def _stage_row(place: int, run: Run) -> str:
    times = run.times()
    steps = f"{run.step:,}" if run.finished or not run.steps else f"{run.step:,} of {run.steps:,}"
    cells = (
        "".join(f"<td>{moment(time)}</td>" for time in (times[0], times[-1])) if times else 2 * f"<td>{NOTHING}</td>"
    )
    return (
        f'<tr><td><a href="#stage-{place}">{_breakable(run.name)}</a></td><td>{text(run.stage or NOTHING)}</td>'
        f'<td>{state(run)}</td><td class="number">{steps}</td><td class="number">{duration(times)}</td>{cells}</tr>'
    )


def state(run: Run) -> str:
    """In words and a sign."""
    return '<span class="done">✓ done</span>' if run.finished else '<span class="going">◔ under way</span>'


def moment(seconds: float) -> str:
    """Seconds since 1970 as date and time."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def duration(times: Sequence[float]) -> str:
    """How long a run took, and how often it paused."""
    seconds, pauses = working_time(times)
    if not seconds:
        return NOTHING
    note = f", {pauses} pause{'s' * (pauses > 1)}" if pauses else ""
    return span(seconds) + note


def span(seconds: float) -> str:
    """Seconds in the two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def tiles(runs: Sequence[Run]) -> str:
    """What matters most in large figures: from the first reading of all stages to the last.

    Evaluation counts where there is one, training otherwise; a single stage without any headline shows what it has.
    """
    found = [_over_all(runs, name) for name in HEADLINES]
    shown = [change for change in found if change is not None]
    if not shown and len(runs) == 1:
        shown = [change for change in changes(runs[0]) if names.describe(change.name).group != names.MACHINERY]
    return f'<div class="tiles">{"".join(map(_tile, shown[:_TILES]))}</div>' if shown else ""


def _over_all(runs: Sequence[Run], base: str) -> Change | None:
    for name in (EVALUATION + base, base):
        readings: Points = []
        origin = 0
        for run in runs:
            readings += [(origin + step, value) for step, value in run.points(name)]
            origin += run.step
        if readings:
            return Change(name, readings[0], readings[-1])
    return None


def _tile(change: Change) -> str:
    metric = names.describe(change.name)
    unit = f" <small>{text(metric.unit)}</small>" if metric.unit else ""
    before = ""
    if change.amount is not None:
        before = f"<p>from {number(change.first[1])} {_arrow(change.amount, change.last[1], metric.better)}</p>"
    return f'<div class="tile"><h3>{text(metric.title)}</h3><b>{number(change.last[1])}{unit}</b>{before}</div>'


def from_stage_to_stage(runs: Sequence[Run]) -> str:
    """Stage by metric: the last evaluation of each, and the change since the stage before that measured it; or ""."""
    columns = [EVALUATION + name for name in HEADLINES]
    columns[1:1] = dict.fromkeys(name for run in runs for name in run.names if name.startswith(_SCORE))
    columns = [name for name in columns if any(run.points(name) for run in runs)]
    if len(runs) < 2 or not columns:
        return ""
    head = "<th>stage</th>" + "".join(f"<th>{text(names.describe(name).title)}</th>" for name in columns)
    rows, before = [], {}
    for run in runs:
        cells = "".join(_summary_cell(run, name, before) for name in columns)
        rows.append(f"<tr><td>{_breakable(run.name)}</td>{cells}</tr>")
    return f'<div class="scroll"><table class="summary"><tr>{head}</tr>{"".join(rows)}</table></div>'


def _summary_cell(run: Run, name: str, before: dict[str, float]) -> str:
    readings = run.points(name)
    if not readings:
        return f'<td class="number">{NOTHING}</td>'
    value = readings[-1][1]
    amount = _difference(before[name], value) if name in before else None
    before[name] = value
    change = "" if amount is None else f"<br>{_arrow(amount, value, names.describe(name).better)}"
    return f'<td class="number">{number(value)}{change}</td>'


def headline(run: Run) -> str:
    """A row for each metric of `changes`: its last value, the change, and where it came from."""
    rows, before = "", ""
    for change in changes(run):
        note = names.describe(change.name).note
        rows, before = rows + _headline_row(change, note if note != before else ""), note
    if not rows:
        return '<p class="counts">No reading yet.</p>'
    note = "" if any(name.startswith(EVALUATION) for name in run.names) else " in training (no evaluation yet)"
    head = f"<th>metric{note}</th><th>last</th><th>change</th><th>first</th><th>steps</th>"
    return f'<div class="scroll"><table class="headline"><tr>{head}</tr>{rows}</table></div>'


def _headline_row(change: Change, note: str) -> str:
    metric = names.describe(change.name)
    unit = f" <small>{text(metric.unit)}</small>" if metric.unit else ""
    moved = NOTHING if change.amount is None else _arrow(change.amount, change.last[1], metric.better)
    steps = f"{change.first[0]:,} → {change.last[0]:,}" if change.first[0] != change.last[0] else f"{change.last[0]:,}"
    explained = f'<span class="note">{text(note)}</span>' if note else ""
    return (
        f'<tr><td>{text(metric.title)}{explained}</td><td class="number"><b>{number(change.last[1])}</b>{unit}</td>'
        f'<td class="number">{moved}</td><td class="number">{number(change.first[1])}</td>'
        f'<td class="number">{steps}</td></tr>'
    )


def _breakable(name: str) -> str:
    """A path that may go on in a next line, at its natural places."""
    return text(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def _difference(first: float, last: float) -> float | None:
    return last - first if math.isfinite(first) and math.isfinite(last) else None


def _arrow(amount: float, to: float, better: int) -> str:
    """A change with its direction as a sign, and in words whether it is for the better."""
    if amount == 0:
        return '<span class="change">= unchanged</span>'
    sign = "▲" if amount > 0 else "▼"
    good = amount * better > 0
    kind, verdict = ("", "") if not better else ("good", " better") if good else ("bad", " worse")
    return f'<span class="change {kind}">{sign} {signed(amount, to)}<small>{verdict}</small></span>'
