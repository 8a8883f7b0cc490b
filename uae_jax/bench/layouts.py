"""Prompts and folders of GenEval, GenEval++ and DPG-Bench, as their official scorers take them.

benchmark   --prompts                          --output
geneval     evaluation_metadata.jsonl          00000/metadata.jsonl, 00000/samples/00000.png to 00003.png, ...
genevalpp   its metadata, JSON lines           image/1.jpg, ..., by number of the line
dpg         folder of .txt, one a prompt       STEM.png, a grid of 2 x 2 paintings, and nothing else
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from uae_jax.bench.grids import COPIES
from uae_jax.data.images import ImageError, open_image
from uae_jax.data.lines import numbered_lines, whole_text


@dataclasses.dataclass(frozen=True)
class Task:
    """One file to paint.

    Attributes:
      prompt: what is painted.
      file: where it goes, below the output folder.
      copies: paintings in it: 1, or 4 in a grid.
    """

    prompt: str
    file: Path
    copies: int = 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """A benchmark.

    Attributes:
      tasks: reads what `--prompts` is.
      prepare: writes what belongs beside the paintings, into the output folder.
      check: looks at the folder as the official loader does; returns what is wrong with it, a line each.
      alone: that loader takes whatever is in the folder for a painting.
    """

    tasks: Callable[[Path], list[Task]]
    prepare: Callable[[Path, Path], None]
    check: Callable[[Path, Path], list[str]]
    alone: bool = False

    def strangers(self, tasks: list[Task], output: Path) -> list[Path]:
        """What is in the folder, if it is there, and must not be; what a run that was killed left is painted over."""
        if not self.alone or not output.is_dir():
            return []
        own = {name for task in tasks for name in (task.file.name, f".{task.file.name}.part")}
        return sorted(path for path in output.iterdir() if path.name not in own)


def read_lines(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Lines of JSON with "prompt" and "tag", the metadata of GenEval and GenEval++: as they are, and read.

    Raises:
      ValueError: on a line that is something else, or if there are none.
    """
    found = []
    for number, line in numbered_lines(file):
        try:
            record = json.loads(line)
        except ValueError:
            raise ValueError(f"{file}:{number}: no JSON: {line[:60]!r}") from None
        if not (isinstance(record, dict) and isinstance(record.get("prompt"), str) and "tag" in record):
            raise ValueError(f'{file}:{number}: wanted an object with "prompt" and "tag", got {line[:60]!r}')
        found.append((line, record))
    if not found:
        raise ValueError(f"{file} has no prompts")
    return found


# -- GenEval --


def _geneval_tasks(file: Path) -> list[Task]:
    return [
        Task(record["prompt"], Path(f"{i:05d}/samples/{copy:05d}.png"))
        for i, (_, record) in enumerate(read_lines(file))
        for copy in range(COPIES)
    ]


def _geneval_prepare(file: Path, output: Path) -> None:
    for i, (line, _) in enumerate(read_lines(file)):
        folder = output / f"{i:05d}"
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        (folder / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")


def _geneval_check(file: Path, output: Path) -> list[str]:
    """As `evaluate_images.py` reads it: digit folders with metadata, and images of digits below `samples`."""
    faults, lines = [], read_lines(file)
    folders = sorted(path for path in output.iterdir() if path.is_dir() and path.name.isdigit())
    if len(folders) != len(lines):
        faults.append(f"{len(folders)} folders of prompts, wanted {len(lines)}")
    for folder in folders:
        told = folder / "metadata.jsonl"
        number = int(folder.name)
        if not told.is_file() or number >= len(lines) or json.loads(told.read_text("utf-8")) != lines[number][1]:
            faults.append(f"{told}: not line {number + 1} of {file}")
        images = [path for path in (folder / "samples").glob("*") if re.fullmatch(r"\d+\.png", path.name)]
        if len(images) != COPIES:
            faults.append(f"{folder / 'samples'}: {len(images)} images, wanted {COPIES}")
        faults += _unreadable(images)
    return faults


# -- GenEval++ --


def _genevalpp_tasks(file: Path) -> list[Task]:
    return [Task(record["prompt"], Path(f"image/{i}.jpg")) for i, (_, record) in enumerate(read_lines(file), start=1)]


def _genevalpp_prepare(file: Path, output: Path) -> None:
    (output / "image").mkdir(parents=True, exist_ok=True)


def _genevalpp_check(file: Path, output: Path) -> list[str]:
    """As its judge reads it: number of the line, from 1, and `.jpg`; what is missing counts as wrong."""
    wanted = [output / task.file for task in _genevalpp_tasks(file)]
    faults = [f"{path}: missing" for path in wanted if not path.is_file()]
    return faults + _unreadable([path for path in wanted if path.is_file()])


# -- DPG-Bench --


def _dpg_tasks(folder: Path) -> list[Task]:
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder}: wanted a folder of .txt files, one a prompt, as DPG-Bench has in `prompts`")
    dotted = [file for file in files if "." in file.stem]
    if dotted:
        raise ValueError(f"{dotted[0]}: the scorer takes a name up to its first dot; rename it")
    prompts = {file: whole_text(file).strip() for file in files}
    if empty := [file for file, prompt in prompts.items() if not prompt]:
        raise ValueError(f"{empty[0]} is empty")
    return [Task(prompt, Path(f"{file.stem}.png"), COPIES) for file, prompt in prompts.items()]


def _dpg_prepare(folder: Path, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)


def _dpg_check(folder: Path, output: Path) -> list[str]:
    """As `compute_dpg_bench.py` reads it: every file in the folder is a grid, found by its name up to the first dot."""
    wanted = {task.file.name for task in _dpg_tasks(folder)}
    there = {path.name: path for path in output.iterdir()}
    faults = [f"{output / name}: missing" for name in sorted(wanted - set(there))]
    faults += [f"{there[name]}: not of this benchmark; keep it elsewhere" for name in sorted(set(there) - wanted)]
    grids = [there[name] for name in sorted(wanted & set(there))]
    faults += _unreadable(grids)
    sizes = set()
    for path in grids if not faults else ():
        with Image.open(path) as image:
            sizes.add(image.size)
    if len(sizes) > 1 or any(width != height or width % 2 for width, height in sizes):
        faults.append(f"{output}: grids of {sorted(sizes)}, wanted squares of one size")
    return faults


def _unreadable(files: list[Path]) -> list[str]:
    faults = []
    for file in files:
        try:
            open_image(file)
        except ImageError as error:
            faults.append(str(error))
    return faults


LAYOUTS = {
    "geneval": Layout(_geneval_tasks, _geneval_prepare, _geneval_check),
    "genevalpp": Layout(_genevalpp_tasks, _genevalpp_prepare, _genevalpp_check),
    "dpg": Layout(_dpg_tasks, _dpg_prepare, _dpg_check, alone=True),
}
