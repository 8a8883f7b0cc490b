"""Images in a notebook, and a run: its charts and its newest pictures, drawn again while it goes on.

    show({"image": images, "painting": paintings}, captions)

    with watch("runs/demo"):
        chain.train_stages(experiments, Path("runs/demo"), quiet=True)

Needs IPython and matplotlib (`pip install -e '.[notebook]'`; Colab has both).
"""

import contextlib
import io
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uae_jax.html import encoded
from uae_jax.report import curves
from uae_jax.report.charts import Chart
from uae_jax.report.runs import Run, read_runs
from uae_jax.stages.base import Picture
from uae_jax.training.pictures import render_grid

_COLUMNS, _CHART_INCHES = 2, (4.4, 2.3)
_DPI = 72  # small enough that a notebook with its outputs can be kept under version control
_LINES = ("-", "--", "-.", ":")


def show(columns: Mapping[str, Sequence[Image.Image]], texts: Sequence[str] = ()) -> None:
    """Shows images below the cell: a column under each heading, and the text of each row below it.

    Raises:
      ValueError: unless all columns have as many images, and there are as many texts or none.
    """
    from IPython import display

    rows = [[np.asarray(image.convert("RGB")) for image in row] for row in zip(*columns.values(), strict=True)]
    grid = Image.fromarray(render_grid(Picture("images", tuple(columns), rows, tuple(texts))))
    # As bytes: an image of Pillow would be kept twice, as PNG and as JPEG.
    display.display(display.Image(data=encoded(grid, "PNG", optimize=True)))


@contextlib.contextmanager
def watch(workdir: str | os.PathLike, every_s: float = 5.0) -> Iterator[None]:
    """Shows a run below the cell while the block runs, and its last state when it ends, however it ends.

    Args:
      workdir: as `uae train` has it; there need be nothing in it yet.
      every_s: seconds between two looks.
    """
    from IPython import display

    # Two places below the cell that are drawn anew, not one after another.
    places = [display.display(display_id=True) for _ in range(2)]
    ended = threading.Event()

    def look() -> None:
        for place, image in zip(places, (charts_png(workdir), newest_picture(workdir)), strict=True):
            if image is not None:
                place.update(display.Image(data=image))

    def go_on() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def charts_png(workdir: str | os.PathLike) -> bytes | None:
    """A PNG of the headlines of all stages, and of loss and reward of the one under way; None before there are any."""
    runs = _runs(workdir)
    last = [chart for charts in (curves.stage_charts(runs[-1]) if runs else {}).values() for chart in charts]
    shown = [*(curves.whole_charts(runs) if len(runs) > 1 else []), *_leading(last)]
    return to_png(shown) if shown else None


def newest_picture(workdir: str | os.PathLike) -> bytes | None:
    """The PNG that the last evaluation left; None before the first."""
    files = [(run.folder, max(steps), steps[max(steps)]) for run in _runs(workdir) for steps in run.pictures.values()]
    return files[-1][2].read_bytes() if files else None


def to_png(charts: Sequence[Chart]) -> bytes:
    """Draws charts beside and below each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, whose state threads must not share

    columns = min(_COLUMNS, len(charts))
    rows = math.ceil(len(charts) / columns)
    figure = Figure((columns * _CHART_INCHES[0], rows * _CHART_INCHES[1]), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for place, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if place < len(charts):
            _draw(axes, charts[place])
        else:
            axes.axis("off")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw(axes: Any, chart: Chart) -> None:
    for line in chart.lines:
        steps, values = zip(*line.points, strict=True) if line.points else ((), ())
        colour, dashes = (int(part[1:]) for part in line.style.split())
        axes.plot(
            steps,
            values,
            color=line.colour or f"C{colour}",
            linestyle=_LINES[dashes % len(_LINES)],
            marker="o" if line.marks else None,
            markersize=3,
            label=line.label or None,
        )
    for start, name in chart.spans:
        axes.axvline(start, color="0.8", linewidth=0.8, zorder=0)
        axes.text(start, 1, f" {name}", transform=axes.get_xaxis_transform(), va="top", fontsize=6, color="0.4")
    axes.set_title(f"{chart.title}, {chart.unit}" if chart.unit else chart.title, fontsize=9)
    axes.tick_params(labelsize=7)
    if any(line.label for line in chart.lines):
        axes.legend(fontsize=6, frameon=False)


def _leading(charts: Sequence[Chart]) -> list[Chart]:
    """What a stage learns by: the charts of its loss and of its reward."""
    return [chart for chart in charts if chart.title.lower() in ("loss", "reward")]


def _runs(workdir: str | os.PathLike) -> list[Run]:
    with contextlib.suppress(ValueError):  # nothing there yet
        return read_runs(Path(workdir))
    return []
