"""Sends references through the loop of a model, into a folder that is then judged like anybody's.

FOLDER/captions.jsonl       what the encoder wrote; beside it, with which settings
FOLDER/paintings/           what the decoder painted, each under its reference's path
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tqdm
from PIL import Image

from uae_jax import plain
from uae_jax.bench.pairing import images_in
from uae_jax.commands import save
from uae_jax.data.caption_files import JsonLines
from uae_jax.data.images import ImageError, open_image
from uae_jax.engine import CaptionSettings, PaintSettings
from uae_jax.pipeline import UAE
from uae_jax.weights import fingerprint

CAPTIONS, PAINTINGS = "captions.jsonl", "paintings"
WINDOW = 64  # references that are open at a time, and painted together


@dataclasses.dataclass(frozen=True)
class How:
    """What decides captions and paintings, beside the model."""

    writing: CaptionSettings
    painting: PaintSettings
    interface: str = "text"
    seed: int = 0


def repaint(
    load: Callable[[], UAE],
    reference: Path,
    folder: Path,
    how: How,
    about: Mapping[str, Any],
    progress: Callable[[int], None],
) -> None:
    """Captions and paints all references that are not done yet; unreadable ones are told, and get no painting.

    Windows are the same however often the run was stopped, and items are drawn by seed and number, so the result is
    the same, too. For that, references must be those that it began with.

    Args:
      load: gives the model; not called where there is nothing to do.
      reference: folder of images.
      folder: where the results go.
      how: see above.
      about: further settings that the folder must have been made with, such as the model's name.
      progress: called with the number of references done.

    Raises:
      ValueError: if the folder was made with other settings or of other references, or two would share a painting.
    """
    files = images_in(reference)
    targets = painting_files(files, reference, folder)
    seen = {"reference": str(reference.resolve()), "references": fingerprint.of_files(reference, files)}
    settings = {**about, **seen, **plain.to_plain(how)}
    uae = None
    with JsonLines(folder / CAPTIONS, settings) as captions:
        for first in range(0, len(files), WINDOW):
            some = files[first : first + WINDOW]
            opened = _readable(some)
            if any(not (captions.has(file) and targets[file].exists()) for file in opened):
                uae = uae or load()
                _paint(uae, opened, targets, captions, how, first)
            progress(len(some))


def painting_files(files: list[Path], reference: Path, folder: Path) -> dict[Path, Path]:
    """Reference -> its painting.

    Raises:
      ValueError: if two would share one, as `a.jpg` and `a.png` do.
    """
    targets = {file: (folder / PAINTINGS / file.relative_to(reference)).with_suffix(".png") for file in files}
    by_target: dict[Path, Path] = {}
    for file, target in targets.items():
        if (other := by_target.setdefault(target, file)) != file:
            raise ValueError(f"{other} and {file} would both be painted into {target}; rename one of them")
    return targets


def _readable(files: list[Path]) -> dict[Path, Image.Image]:
    found = {}
    for file in files:
        try:
            found[file] = open_image(file)
        except ImageError as error:  # without a painting it makes no pair, so that scoring has nothing to tell
            tqdm.tqdm.write(f"uae: skipped: {error}", file=sys.stderr)
    return found


def _paint(uae: UAE, opened: dict[Path, Image.Image], targets: dict, captions: JsonLines, how: How, first: int) -> None:
    files = list(opened)
    results = uae.iter_reconstructions(
        list(opened.values()), how.writing, how.painting, interface=how.interface, seed=how.seed, first=first
    )
    for place, result in results:
        target = targets[files[place]]
        target.parent.mkdir(parents=True, exist_ok=True)
        save(result.image, target)
        if not captions.has(files[place]):
            captions.write(files[place], result.caption)
