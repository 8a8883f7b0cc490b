"""Judges folders of GenEval, GenEval++ and DPG-Bench twins by what the scene world's detector finds in their paintings.

The figures are those of `uae_jax.bench.judging`, whose judge is asked; here nothing learned takes part.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uae_jax.bench import judging
from uae_jax.bench.grids import quarter
from uae_jax.bench.layouts import Task
from uae_jax.bench.scenes import dpg
from uae_jax.data.images import open_image
from uae_jax.data.scenes import score_painting_of_caption


def geneval(lines: Sequence[dict[str, Any]], tasks: Sequence[Task], folder: Path) -> dict[str, Any]:
    """`judging.geneval_summary` of GenEval or GenEval++.

    Args:
      lines: of the metadata.
      tasks: its paintings, those of the first line first, as many of each line.
      folder: where they are.
    """
    copies = len(tasks) // len(lines)
    said: dict[int, list[list[bool]]] = {number: [] for number in range(len(lines))}
    for place, task in enumerate(tasks):
        score = score_painting_of_caption(_pixels(open_image(folder / task.file)), lines[place // copies]["prompt"])
        said[place // copies].append([score.accuracy == 1])
    return judging.geneval_summary(lines, said)


def dpg_bench(captions: dict[str, str], tasks: Sequence[Task], folder: Path) -> dict[str, Any]:
    """`judging.dpg_summary`.

    Args:
      captions: stem -> prompt.
      tasks: their paintings, in grids.
      folder: where they are.
    """
    said = {}
    for task in tasks:
        whole, stem = open_image(folder / task.file), task.file.stem
        said[stem] = [dpg.answers(captions[stem], _pixels(quarter(whole, number))) for number in range(task.copies)]
    return judging.dpg_summary(dpg.checks(captions), said)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))
