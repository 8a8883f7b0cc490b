"""Which charts a run gets: what belongs together in one, in groups, in order."""

import itertools
from collections.abc import Sequence

from uae_jax.report import names
from uae_jax.report.charts import COLOURS, Chart, Line
from uae_jax.report.names import EVALUATION, HEADLINES
from uae_jax.report.runs import Run

_WIDE = ("unified", "caption_words")
_RAMP = ((59, 111, 212), (140, 143, 152), (222, 139, 26))  # RGB; told apart by colour-blind people, too
_KIND = ("training", "evaluation")


def stage_charts(run: Run) -> dict[str, list[Chart]]:
    """Group -> its charts, in the order of `names.GROUPS`; everything that was measured is in one of them."""
    together: dict[tuple[str, str], list[str]] = {}
    for name in sorted(run.names, key=names.rank):
        metric = names.describe(name)
        together.setdefault((metric.group, metric.chart or metric.title), []).append(name)
    charts: dict[str, list[Chart]] = {}
    for (group, title), members in together.items():
        charts.setdefault(group, []).append(_chart(run, title, members))
    return charts


def whole_charts(runs: Sequence[Run]) -> list[Chart]:
    """The headlines over all stages, one after another on one axis; where they were measured twice and more."""
    together: dict[str, list[str]] = {}
    for name in HEADLINES:
        metric = names.describe(name)
        together.setdefault(metric.chart or metric.title, []).append(name)
    charts = [_whole_chart(runs, title, members) for title, members in together.items()]
    return [chart for chart in charts if sum(len(line.points) for line in chart.lines) > 1]


def ramp(part: float) -> str:
    """A colour, "#rrggbb", for 0 to 1 along a scale."""
    place = part * (len(_RAMP) - 1)
    left = min(int(place), len(_RAMP) - 2)
    mixed = (round(a + (b - a) * (place - left)) for a, b in zip(_RAMP[left], _RAMP[left + 1], strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _chart(run: Run, title: str, members: Sequence[str]) -> Chart:
    metric = names.describe(members[0])
    by_base: dict[str, list[str]] = {}
    for name in members:
        by_base.setdefault(name.removeprefix(EVALUATION), []).append(name)
    lines = _lines_of_many(run, by_base) if metric.line or len(by_base) > 1 else _lines_of_one(run, members)
    return Chart(title, lines, _note(members), metric.unit, metric.log, wide=next(iter(by_base)) in _WIDE)


def _lines_of_one(run: Run, members: Sequence[str]) -> list[Line]:
    """Training and evaluation of one metric, whichever there is."""
    base = members[0].removeprefix(EVALUATION)
    lines = []
    if base in members:
        lines.append(Line(_KIND[0], run.points(base), "c0 d0"))
    if EVALUATION + base in members:
        lines.append(Line(_KIND[1], run.points(EVALUATION + base), "c1 d0", marks=True))
    return lines


def _lines_of_many(run: Run, by_base: dict[str, list[str]]) -> list[Line]:
    """A colour and a dash pattern for each metric; those of a family, and many, take their colours from a ramp."""
    bases = sorted(by_base, key=_number)
    both = {name.startswith(EVALUATION) for members in by_base.values() for name in members} == {True, False}
    ramped = len(bases) > COLOURS or all(_number(base) >= 0 for base in bases)
    lines = []
    for i, base in enumerate(bases):
        style = f"c{i % COLOURS} d{i % COLOURS}"
        colour = ramp(i / max(len(bases) - 1, 1)) if ramped else ""
        for name in sorted(by_base[base], key=lambda name: name.startswith(EVALUATION)):
            measured, label = name.startswith(EVALUATION), names.describe(name).line or names.describe(name).title
            label += f", {_KIND[1]}" if both and measured else ""
            lines.append(Line(label, run.points(name), style, colour, marks=measured))
    return lines


def _number(name: str) -> int:
    """The number of a member of a family, -1 for other metrics, which keep their order."""
    last = name.rpartition("/")[2]
    return int(last) if last.isdecimal() else -1


def _whole_chart(runs: Sequence[Run], title: str, bases: Sequence[str]) -> Chart:
    """A line for each stage, metric and kind; the first of a metric and kind names them all in the legend."""
    origins = [0, *itertools.accumulate(max(run.step, 1) for run in runs)]
    lines = []
    for i, (base, measured) in enumerate(itertools.product(bases, (False, True))):
        several = len(bases) > 1
        label = f"{names.describe(base).line}, {_KIND[measured]}" if several else _KIND[measured]
        style = f"c{i // 2} d{i // 2}" if several else f"c{i} d0"
        lines += _over_all(runs, origins, EVALUATION * measured + base, label, style)
    spans = [(origin, run.name) for origin, run in zip(origins, runs, strict=False)]
    metric = names.describe(bases[0])
    return Chart(title, lines, _note(bases), metric.unit, metric.log, spans, wide=bases[0] in _WIDE)


def _over_all(runs: Sequence[Run], origins: Sequence[int], name: str, label: str, style: str) -> list[Line]:
    lines = []
    for origin, run in zip(origins, runs, strict=False):
        points = [(origin + step, value) for step, value in run.points(name)]
        if points:
            shown = "" if lines else label
            lines.append(Line(shown, points, style, marks=name.startswith(EVALUATION), origin=origin))
    return lines


def _note(members: Sequence[str]) -> str:
    """The explanation of what is in one chart: of all if it is the same, of each if not."""
    notes = {names.describe(name).note: names.describe(name).line for name in members}
    if len(notes) == 1:
        return next(iter(notes))
    return "; ".join(f"{line}: {note}" for note, line in notes.items())
