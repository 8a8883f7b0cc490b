"""Line charts as SVG, to stand in a page whose style sheet has the classes used here."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from uae_jax.html import text
from uae_jax.report.scales import BOTTOM, LEFT, RIGHT, TOP, Frame, number, step_axis, tick_labels, value_axis

COLOURS = 6  # classes c0 ... c5 of the style sheet; each comes with a dash pattern, so that no line is known by colour
WIDTH, WIDE, HEIGHT = 440, 900, 230  # pixels
_MOST_POINTS = 400  # drawn of a line
_RESTLESS = 4  # a line that travels more than so many times its own range is drawn with its running mean
_SMOOTH_POINTS = 40  # and has at least so many points
_LETTER = 6  # pixels, roughly
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """One line.

    Attributes:
      label: for the legend; "" for none.
      points: (step, value), steps in order; a value that is not finite is a gap.
      style: CSS classes: "c0" to "c5", "d0" to "d5" for its dashes.
      colour: overrides the colour of the class; "" does not.
      marks: whether each point gets a dot, which tells its value when pointed at.
      origin: step from which those of this line are counted when they are told.
    """

    label: str
    points: Sequence[Point]
    style: str = "c0 d0"
    colour: str = ""
    marks: bool = False
    origin: float = 0


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines over training steps.

    Attributes:
      title: of the chart.
      lines: first ones lie below later ones.
      note: one line of explanation.
      unit: of the values.
      log: whether a logarithmic axis may be taken.
      spans: (first step, name) of stages that lie one after another on the axis.
      wide: whether it takes the place of two.
    """

    title: str
    lines: Sequence[Line]
    note: str = ""
    unit: str = ""
    log: bool = False
    spans: Sequence[tuple[float, str]] = ()
    wide: bool = False


def to_html(chart: Chart) -> str:
    """A chart with its title, explanation and legend; whatever comes from data is escaped."""
    notes = "".join(f'<span class="note">{text(note)}</span>' for note in _notes(chart))
    legend = "".join(_legend(line) for line in chart.lines if line.label)
    return (
        f'<figure class="chart{" wide" if chart.wide else ""}"><figcaption><b>{text(chart.title)}</b>{notes}'
        f'</figcaption><div class="legend">{legend}</div>{svg(chart)}</figure>'
    )


def _notes(chart: Chart) -> list[str]:
    """What has to be said of a chart: what it shows, and what it does not."""
    odd = sum(not math.isfinite(value) for line in chart.lines for _, value in line.points)
    notes = [chart.note] if chart.note else []
    if any(_has_mean(line) for line in chart.lines):
        notes.append("running mean; all readings pale behind it")
    if odd:
        notes.append(f"left out: {odd:,} reading{'s' * (odd > 1)} that {'are' if odd > 1 else 'is'} no finite number")
    return notes


def svg(chart: Chart) -> str:
    """The drawing alone."""
    frame = frame_of(chart)
    unit = f'<text class="unit" x="4" y="12">{text(chart.unit)}</text>' if chart.unit else ""
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{text(_spoken(chart))}">'
        f"{_grid(frame, chart)}{unit}{_spans(frame, chart.spans)}"
        f"{''.join(_line(frame, line) for line in chart.lines)}</svg>"
    )


def frame_of(chart: Chart) -> Frame:
    """Size and axes of a chart."""
    values = [value for line in chart.lines for _, value in line.points]
    last = max((step for line in chart.lines for step, _ in line.points), default=1)
    width = WIDE if chart.wide else WIDTH
    return Frame(width, HEIGHT, step_axis(last), value_axis(values, chart.log))


def path(frame: Frame, points: Sequence[Point]) -> str:
    """SVG path data through the finite points, interrupted at the others; a point between two gaps is a dot."""
    commands, run = [], 0
    for step, value in [*points, (0, math.nan)]:
        if math.isfinite(value):
            commands.append(f"{'L' if run else 'M'}{frame.x(step):.1f},{frame.y(value):.1f}")
            run += 1
            continue
        if run == 1:
            commands.append("h0")
        run = 0
    return "".join(commands)


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most so many points: of each stretch the lowest and the highest, and its first gap; so no peak is lost."""
    if len(points) <= most:
        return list(points)
    stretches = max(1, most // 3)
    bounds = [len(points) * i // stretches for i in range(stretches + 1)]
    kept = []
    for first, last in itertools.pairwise(bounds):
        stretch = range(first, last)
        finite = [i for i in stretch if math.isfinite(points[i][1])]
        gap = next((i for i in stretch if not math.isfinite(points[i][1])), None)
        places = {gap} - {None}
        if finite:
            places |= {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
        kept += sorted(places)
    return [points[i] for i in kept]


def smoothed(points: Sequence[Point], reach: int) -> list[Point]:
    """The mean of each point and of up to `reach` on either side; a gap stays one, and counts in no mean."""
    result = []
    for i, (step, value) in enumerate(points):
        near = [value for _, value in points[max(0, i - reach) : i + reach + 1] if math.isfinite(value)]
        result.append((step, sum(near) / len(near) if math.isfinite(value) else math.nan))
    return result


def is_restless(points: Sequence[Point]) -> bool:
    """Whether a line goes up and down so much that its running mean says more."""
    values = [value for _, value in points if math.isfinite(value)]
    if len(values) < _SMOOTH_POINTS:
        return False
    way = sum(abs(later - earlier) for earlier, later in itertools.pairwise(values))
    return way > _RESTLESS * (max(values) - min(values))


def _has_mean(line: Line) -> bool:
    return not line.marks and is_restless(line.points)


def _line(frame: Frame, line: Line) -> str:
    colour = f' style="stroke:{line.colour}"' if line.colour else ""
    points = line.points
    parts = []
    if _has_mean(line):
        parts.append(f'<path class="raw {line.style}"{colour} d="{path(frame, thinned(points))}"/>')
        points = smoothed(points, max(2, len(points) // 30))
    end = f"><title>{text(line.label)}</title></path>" if line.label else "/>"
    parts.append(f'<path class="{line.style}"{colour} d="{path(frame, thinned(points))}"{end}')
    if line.marks:
        parts += [_mark(frame, line, step, value) for step, value in thinned(points) if math.isfinite(value)]
    return "".join(parts)


def _mark(frame: Frame, line: Line, step: float, value: float) -> str:
    told = f"{line.label + ', ' if line.label else ''}step {step - line.origin:,.0f}: {number(value)}"
    colour = f' style="fill:{line.colour}"' if line.colour else ""
    return (
        f'<circle class="{line.style}"{colour} cx="{frame.x(step):.1f}" cy="{frame.y(value):.1f}" r="3">'
        f"<title>{text(told)}</title></circle>"
    )


def _grid(frame: Frame, chart: Chart) -> str:
    right, bottom = frame.width - RIGHT, frame.height - BOTTOM
    parts = []
    for tick, label in zip(frame.up.ticks, tick_labels(frame.up), strict=True):
        y = frame.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT},{y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text(label)}</text>')
    for tick, label in zip(frame.across.ticks, tick_labels(frame.across), strict=True):
        x = frame.x(tick)
        parts.append(f'<path class="grid" d="M{x:.1f},{bottom}v4"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text(label)}</text>')
    name = "step, the stages one after another" if chart.spans else "step"
    parts.append(f'<text class="unit" x="{right}" y="{frame.height - 3}" text-anchor="end">{name}</text>')
    return "".join(parts)


def _spans(frame: Frame, spans: Sequence[tuple[float, str]]) -> str:
    """A line where each stage begins, and its name as far as there is room."""
    if not spans:
        return ""
    parts = []
    ends = [frame.x(first) for first, _ in spans[1:]] + [frame.width - RIGHT]
    for (first, name), end in zip(spans, ends, strict=True):
        x, letters = frame.x(first), int((end - frame.x(first) - 8) / _LETTER)
        shown = name if len(name) <= letters else name[: max(letters - 1, 0)] + "…"
        parts.append(f'<path class="span" d="M{x:.1f},{TOP - 12}V{frame.height - BOTTOM}"/>')
        if letters >= 3:
            parts.append(f'<text class="tick" x="{x + 5:.1f}" y="{TOP - 6}">{text(shown)}</text>')
    return "".join(parts)


def _legend(line: Line) -> str:
    colour = f' style="stroke:{line.colour}"' if line.colour else ""
    dot = f'<circle class="{line.style}" cx="14" cy="5" r="3"/>' if line.marks else ""
    swatch = (
        f'<svg width="28" height="10" aria-hidden="true"><path class="{line.style}"{colour} d="M1,5H27"/>{dot}</svg>'
    )
    return f"<span>{swatch}{text(line.label)}</span>"


def _spoken(chart: Chart) -> str:
    """A chart in words: where each line begins and ends."""
    parts = []
    for line in chart.lines:
        values = [value for _, value in line.points if math.isfinite(value)]
        if values:
            parts.append(f"{line.label + ' ' if line.label else ''}from {number(values[0])} to {number(values[-1])}")
    return f"{chart.title}: {'; '.join(parts) or 'no values'}"
