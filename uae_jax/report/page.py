"""The report: one HTML file about one run, or about one of several stages, with everything in it."""

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from uae_jax import html, paths
from uae_jax.html import text
from uae_jax.report import charts, curves, films, names, tables
from uae_jax.report.runs import Run, read_runs
from uae_jax.report.style import SCRIPT, STYLE

FILE = "report.html"
MARK = "written by uae report"
_FOLDED = (names.STEPS, names.MACHINERY)  # groups of charts that are there to be unfolded


def write(workdir: str | os.PathLike, output: str | os.PathLike | None = None, *, force: bool = False) -> Path:
    """Writes the report of a run, finished or under way.

    Args:
      workdir: as `uae train` has it, of one stage or of several; local, or "gs://...".
      output: the file, by default report.html in `workdir`. An earlier report is replaced, never half of it.
      force: replace any other file, too.

    Returns:
      the file.

    Raises:
      ValueError: if there is no run in `workdir`, or `output` is a folder.
      FileExistsError: if `output` is a file that no report is in, and `force` was not given.
      OSError: if it cannot be written.
    """
    workdir = paths.as_path(workdir)
    output = paths.as_path(output or workdir / FILE)
    runs = read_runs(workdir)
    _check(output, force)
    written = to_html(workdir.resolve().name, runs, str(workdir))
    output.parent.mkdir(parents=True, exist_ok=True)
    paths.write(output, written)
    return output


def to_html(title: str, runs: Sequence[Run], place: str = "") -> str:
    """The whole page; whatever comes from the runs is escaped.

    Args:
      title: of the page.
      runs: at least one.
      place: where they lie, to be told.
    """
    frames, most_bytes = films.allowance(runs)
    body = [
        f"<h1>{text(title)}</h1>",
        f'<p class="counts">{_facts(runs)}{f" · {text(place)}" if place else ""}</p>',
        tables.tiles(runs),
        tables.stages(runs),
        *_whole(runs),
        *(part for number, run in enumerate(runs, 1) for part in _stage(number, run, frames, most_bytes)),
        f"<script>{SCRIPT}</script>",
    ]
    return html.page(f"{title} · report", STYLE, body, mark=MARK)


def _check(output: Path, force: bool) -> None:
    """Sees to it that nothing is lost but an earlier report."""
    if output.is_dir():
        raise ValueError(f"{output}: is a folder, wanted a file, such as {output / FILE}")
    if force or not output.exists():
        return
    with output.open("rb") as file:
        start = file.read(512)
    if f"<!-- {MARK} -->".encode() not in start:
        raise FileExistsError(f"{output} is no report and would be overwritten; choose another --output, or --force")


def _facts(runs: Sequence[Run]) -> str:
    """How many stages, how long in all, when."""
    done = sum(run.finished for run in runs)
    if len(runs) == 1:
        count = "1 stage, " + ("done" if done else "under way")
    else:
        count = f"{len(runs)} stages, {'all' if done == len(runs) else done} done"
    seconds = sum(tables.working_time(run.times())[0] for run in runs)
    times = [time for run in runs for time in run.times()]
    when = [f"{tables.moment(min(times))} to {tables.moment(max(times))}"] if times else []
    made = f"report of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return " · ".join([count, *([f"{tables.span(seconds)} of training"] if seconds else []), *when, made])


def _whole(runs: Sequence[Run]) -> Iterable[str]:
    """What moved from stage to stage."""
    if len(runs) < 2:
        return
    table, drawn = tables.from_stage_to_stage(runs), curves.whole_charts(runs)
    if table or drawn:
        yield "<h2>From stage to stage</h2>"
    if table:
        yield '<p class="counts">Last evaluation of each stage, and the change since the stage before.</p>'
        yield table
    if drawn:
        yield _grid(drawn)


def _stage(number: int, run: Run, frames: int, most_bytes: int) -> Iterable[str]:
    kind = f"<small>{text(run.stage)}</small>" if run.stage else ""
    yield f'<h2 id="stage-{number}">{text(run.name)}{kind}</h2>'
    of = f" of {run.steps:,}" if run.steps and not run.finished else ""
    yield f'<p class="counts">{tables.state(run)} · step {run.step:,}{of} · {tables.duration(run.times())}</p>'
    yield tables.headline(run)
    yield from _curves(run)
    if run.pictures:
        yield "<h3>Pictures</h3>"
        yield '<p class="counts">Always of the same held-out images.</p>'
    for name, files in run.pictures.items():
        yield films.film(name, files, frames, most_bytes)
    if run.config:
        shown = json.dumps(run.config, indent=2, ensure_ascii=False)
        yield f"<details><summary>Configuration</summary><pre>{text(shown)}</pre></details>"


def _curves(run: Run) -> Iterable[str]:
    groups = curves.stage_charts(run)
    shown = [_group(group, drawn) for group, drawn in groups.items() if group not in _FOLDED]
    yield f'<div class="groups">{"".join(shown)}</div>'
    for group in _FOLDED:
        if drawn := groups.get(group):
            charted = f"{len(drawn)} chart{'s' * (len(drawn) > 1)}"
            yield f"<details><summary>{group} ({charted})</summary>{_grid(drawn)}</details>"


def _group(title: str, drawn: Sequence[charts.Chart]) -> str:
    """Charts below a heading, in as many columns as they fill, three at most."""
    columns = min(3, sum(1 + chart.wide for chart in drawn))
    return f'<section class="columns{columns}"><h3>{title}</h3>{_grid(drawn)}</section>'


def _grid(drawn: Iterable[charts.Chart]) -> str:
    return f'<div class="charts">{"".join(map(charts.to_html, drawn))}</div>'
