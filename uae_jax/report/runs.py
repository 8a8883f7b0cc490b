"""Training runs as they lie on disk, read without starting anything; a run may still be under way.

A folder with a `metrics.jsonl` is a run, at any depth; see `uae_jax.training.loop` for what else lies in it.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax import paths
from uae_jax.training import metrics, pictures

CONFIG, MODEL = "config.json", "model"
_NO_RUNS = {"checkpoints", MODEL, pictures.FOLDER, metrics.EVENTS}  # folders of a run in which no other run lies
_STEP = re.compile(r"(\d+)\.png")
_PAUSE, _PAUSE_SECONDS = 10, 600  # gaps of so many usual ones, and so long, are pauses
Points = list[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Run:
    """One stage.

    Attributes:
      name: path below the folder that was asked for; that folder's own name, if it is the run.
      folder: where it lies.
      config: a plain `uae_jax.training.config.Experiment`; empty where none can be read.
      lines: of metrics.jsonl, in the order of their steps; numbers as `metrics.from_json_number` takes them.
      pictures: name -> step -> file, both in order.
      finished: whether the last step is done and the model saved.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    pictures: Mapping[str, Mapping[int, Path]]
    finished: bool

    @property
    def stage(self) -> str:
        """The kind of stage, "" if unknown."""
        return str(self.config.get("stage", ""))

    @property
    def step(self) -> int:
        """The last one that was read, 0 before the first."""
        return self.lines[-1]["step"] if self.lines else 0

    @property
    def steps(self) -> int | None:
        """How many there are to be."""
        return _steps(self.config)

    @property
    def names(self) -> list[str]:
        """Everything it measured, in the order in which it came up."""
        names = {name: None for line in self.lines for name in line}
        return [name for name in names if name not in ("step", "time")]

    def points(self, name: str) -> Points:
        """(step, value) of one metric where it was measured; values may be NaN or infinite."""
        return metrics.column(self.lines, name)

    def times(self) -> list[float]:
        """When its lines were written, seconds since 1970."""
        return [line["time"] for line in self.lines if isinstance(line.get("time"), int | float)]


def read_runs(workdir: Path) -> list[Run]:
    """All runs in a folder, in the natural order of their paths: 2_... before 10_...

    Raises:
      ValueError: if there is none.
    """
    folders = sorted(_run_folders(workdir), key=lambda folder: _natural(folder.relative_to(workdir)))
    if not folders:
        raise ValueError(f"{workdir}: no run in it, wanted the --workdir of `uae train`")
    return [_read_run(folder, workdir) for folder in folders]


def working_time(times: Sequence[float]) -> tuple[float, int]:
    """How long a run took from its first reading to its last, the pauses between interruption and resumption left out.

    Args:
      times: seconds, in order.

    Returns:
      seconds; and the number of pauses: gaps of ten minutes and more that are ten times as long as the median one.
    """
    gaps = [max(0.0, later - earlier) for earlier, later in itertools.pairwise(times)]
    if not gaps:
        return 0.0, 0
    usual = sorted(gaps)[len(gaps) // 2]
    pauses = [gap for gap in gaps if gap >= max(_PAUSE_SECONDS, _PAUSE * usual)]
    return sum(gaps) - sum(pauses), len(pauses)


def _run_folders(workdir: Path) -> Iterator[Path]:
    for root, folders, files in paths.walk(workdir):
        is_run = metrics.FILE in files
        if is_run:
            yield root
        folders[:] = [name for name in folders if not name.startswith(".") and not (is_run and name in _NO_RUNS)]


def _natural(path: Path) -> list[list[tuple[int, str]]]:
    """Sorts numbers in names by their value."""
    pieces = (re.findall(r"\d+|\D+", part) for part in path.parts)
    return [[(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in part] for part in pieces]


def _read_run(folder: Path, workdir: Path) -> Run:
    config, lines = _config(folder / CONFIG), _lines(folder)
    steps = _steps(config)
    done = paths.is_whole(folder / MODEL) and (steps is None or not lines or lines[-1]["step"] >= steps)
    name = folder.relative_to(workdir).as_posix() if folder != workdir else workdir.resolve().name
    return Run(name, folder, config, lines, _pictures(folder / pictures.FOLDER), done)


def _config(file: Path) -> dict[str, Any]:
    """What the run was set to; nothing while it is being written."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _steps(config: Mapping[str, Any]) -> int | None:
    steps = config.get("steps")
    return steps if isinstance(steps, int) and steps > 0 else None


def _lines(folder: Path) -> list[dict[str, Any]]:
    """Lines in the order of their steps, without values that are no numbers."""
    lines = [
        {name: value for name, value in line.items() if _is_number(value)} for line in metrics.read_history(folder)
    ]
    return sorted(lines, key=lambda line: line["step"])


def _is_number(value: Any) -> bool:
    return value is None or value in ("inf", "-inf") or isinstance(value, int | float)


def _pictures(folder: Path) -> dict[str, dict[int, Path]]:
    if not folder.is_dir():
        return {}
    found = {}
    for sub in sorted(part for part in folder.iterdir() if part.is_dir()):
        files = ((_STEP.fullmatch(file.name), file) for file in sub.iterdir())
        by_step = {int(match[1]): file for match, file in files if match}
        if by_step:
            found[sub.name] = dict(sorted(by_step.items()))
    return found
