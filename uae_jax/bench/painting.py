"""Paints the prompts of a benchmark, into files that are all there or not at all, and goes on where it stopped."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tqdm

from uae_jax.bench.grids import grid
from uae_jax.bench.layouts import Task
from uae_jax.commands import save
from uae_jax.data.caption_files import write_whole
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


def rewrite(load: Callable[[], UAE], tasks: Sequence[Task], file: Path, seed: int) -> list[Task]:
    """Has the encoder spell every prompt out, as published results marked with a dagger do; greedily, once each.

    Args:
      load: gives the model; not called where all prompts are rewritten already.
      tasks: whose prompts are rewritten.
      file: JSON lines of "prompt" and "rewritten" that are kept, and taken from where they are there.
      seed: of nothing but what the model's own settings draw.
    """
    told: dict[str, str] = {}
    if file.is_file():
        told = {line["prompt"]: line["rewritten"] for line in map(json.loads, file.read_text("utf-8").splitlines())}
    prompts = list(dict.fromkeys(task.prompt for task in tasks))
    if any(prompt not in told for prompt in prompts):
        uae = load()
        settings = dataclasses.replace(uae.defaults.caption, temperature=0.0)
        with tqdm.tqdm(total=len(prompts), desc="rewriting", unit=" prompt", file=sys.stderr) as bar:
            for place, answer in uae.iter_answers(None, [REWRITE.format(p) for p in prompts], settings, seed=seed):
                told[prompts[place]] = answer
                bar.update()
        lines = [json.dumps({"prompt": prompt, "rewritten": told[prompt]}) + "\n" for prompt in prompts]
        write_whole(file, "".join(lines))
    return [dataclasses.replace(task, prompt=told[task.prompt]) for task in tasks]


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
