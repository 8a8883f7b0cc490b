"""Paints the prompts of a benchmark, into files that are all there or not at all, and goes on where it stopped."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uae_jax.bench.layouts import Task, grid
from uae_jax.commands import save
from uae_jax.engine import PaintSettings
from uae_jax.pipeline import UAE

WINDOW = 64  # paintings that are held at a time


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
