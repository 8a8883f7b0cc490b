"""Paints the prompts of a benchmark, into files that are all there or not at all, and goes on where it stopped."""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm

from uae_jax.bench.grids import grid
from uae_jax.bench.layouts import Task
from uae_jax.commands import save
from uae_jax.data.caption_files import KeyedLines
from uae_jax.engine import PaintSettings
from uae_jax.pipeline import UAE

WINDOW = 64  # paintings that are held at a time
REWRITE = (
    "Describe in detail, in one paragraph, the picture that the following asks for. Keep every object, number, colour, "
    "size and place that it names, and add none that contradicts it. {}"
)


def paint(
    load: Callable[[], UAE],
    tasks: Sequence[Task],
    output: Path,
    settings: PaintSettings,
    seed: int,
    progress: Callable[[int], None],
) -> None:
    """Paints what is missing. The noise of a painting is drawn by the seed and its number among all of them.

    Args:
      load: gives the model; not called where nothing is missing.
      tasks: all of them, also those that are done.
      output: that their files are below.
      settings: of painting.
      seed: see above.
      progress: called with the number of files done.
    """
    uae = None
    for first, window in _windows(tasks):
        if not all((output / task.file).exists() for task in window):
            uae = uae or load()
            prompts = [task.prompt for task in window for _ in range(task.copies)]
            painted = dict(uae.iter_paintings(prompts, settings, seed=seed, first=first))
            place = 0
            for task in window:
                save(grid([painted[place + copy] for copy in range(task.copies)]), output / task.file)
                place += task.copies
        progress(len(window))


def rewrite(
    load: Callable[[], UAE], tasks: Sequence[Task], file: Path, made_with: Mapping[str, Any], seed: int
) -> list[Task]:
    """Has the encoder spell every prompt out, as published results marked with a dagger do; greedily, once each.

    Args:
      load: gives the model; not called where all prompts are rewritten already.
      tasks: whose prompts are rewritten.
      file: JSON lines of "prompt" and "rewritten", each written as it is done, and taken from where they are there.
      made_with: the model; kept beside the file.
      seed: of nothing but what the model's own settings draw.

    Raises:
      ValueError: if the file holds something else, or another model wrote it.
    """
    prompts = list(dict.fromkeys(task.prompt for task in tasks))
    uae = None
    with (
        KeyedLines(file, dict(made_with), key="prompt", value="rewritten", texts="rewritten prompts") as lines,
        tqdm.tqdm(total=len(prompts), desc="rewriting", unit=" prompt", file=sys.stderr) as bar,
    ):
        for first in range(0, len(prompts), WINDOW):
            some = prompts[first : first + WINDOW]
            if any(prompt not in lines.texts for prompt in some):
                uae = uae or load()
                settings = dataclasses.replace(uae.defaults.caption, temperature=0.0)
                for place, answer in uae.iter_answers(None, [REWRITE.format(p) for p in some], settings, seed=seed):
                    if some[place] not in lines.texts:
                        lines.add(some[place], answer)
            bar.update(len(some))
        return [dataclasses.replace(task, prompt=lines.texts[task.prompt]) for task in tasks]


def digest(tasks: Sequence[Task]) -> str:
    """Of what is painted and where, so that an edited prompt is noticed."""
    told = [[task.prompt, str(task.file), task.copies] for task in tasks]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _windows(tasks: Sequence[Task]) -> Iterator[tuple[int, list[Task]]]:
    """Tasks some at a time, the same however often the run was stopped; and the number of their first painting."""
    first, count, window = 0, 0, []
    for task in tasks:
        if window and count + task.copies > WINDOW:
            yield first, window
            first, count, window = first + count, 0, []
        window.append(task)
        count += task.copies
    if window:
        yield first, window
