"""Asks the encoder many questions about images, each once, and goes on where it stopped."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tqdm
from PIL import Image

from uae_jax.bench.grids import quarter
from uae_jax.data.caption_files import same_settings, write_whole
from uae_jax.data.images import ImageError, open_image
from uae_jax.engine import CaptionSettings
from uae_jax.pipeline import UAE

WINDOW = 64  # questions that are asked at a time


@dataclasses.dataclass(frozen=True)
class Item:
    """A question.

    Attributes:
      image: file.
      text: what is asked.
      quarter: which quarter of the image it is about, row by row; None for all of it.
    """

    image: Path
    text: str
    quarter: int | None = None


def ask(
    load: Callable[[], UAE],
    items: Sequence[Item],
    output: Path,
    settings: CaptionSettings,
    seed: int,
    made_with: Mapping[str, Any],
) -> dict[int, str]:
    """Asks whatever has no answer yet. Items are drawn by seed and number, in windows that are always the same.

    Args:
      load: gives the model; not called where all is answered.
      items: all of them.
      output: JSON lines of "number" and "answer", appended to.
      settings: how answers are drawn.
      seed: see above.
      made_with: what the answers depend on beside the settings and the seed.

    Returns:
      number of an item -> its answer; none where its image could not be read, which is told.

    Raises:
      ValueError: if the file holds something else, or was made with other settings.
    """
    said = _answers(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".settings.json")
    same_settings(beside, dict(made_with), f"{output} has {len(said)} answers written", fresh=not said)
    model = None
    with (
        tqdm.tqdm(total=len(items), desc="asking", unit=" question", file=sys.stderr) as bar,
        output.open("a") as lines,
    ):
        for first in range(0, len(items), WINDOW):
            numbers = range(first, min(first + WINDOW, len(items)))
            if any(number not in said for number in numbers):
                opened = _open_all({number: items[number] for number in numbers}, bar)
                model = model or load()
                texts = [items[number].text for number in opened]
                places = list(opened)
                for place, answer in model.iter_answers(list(opened.values()), texts, settings, seed=seed, first=first):
                    if places[place] not in said:
                        said[places[place]] = answer
                        lines.write(json.dumps({"number": places[place], "answer": answer}) + "\n")
                lines.flush()
            bar.update(len(numbers))
    return said


def _answers(output: Path) -> dict[int, str]:
    """Answers that are there already; a last line that was cut off is dropped."""
    if not output.is_file():
        return {}
    whole = [line for line in output.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        records = [json.loads(line) for line in whole]
        said = {int(record["number"]): str(record["answer"]) for record in records}
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{output} holds something else than answers; choose another --output") from None
    write_whole(output, "".join(whole))
    return said


def _open_all(items: Mapping[int, Item], bar: tqdm.tqdm) -> dict[int, Image.Image]:
    """Images that can be opened; of the others it says why."""
    opened, whole = {}, {}
    for number, item in items.items():
        try:
            if item.image not in whole:
                whole[item.image] = open_image(item.image)
        except ImageError as error:
            bar.write(f"uae: skipped: {error}", file=sys.stderr)
            continue
        image = whole[item.image]
        opened[number] = image if item.quarter is None else quarter(image, item.quarter)
    return opened
