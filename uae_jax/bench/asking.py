"""Asks the encoder many questions about images, each once, and goes on where it stopped.

An answer is known by what it is to: the bytes of the image file, which quarter of it, and the question. So questions
may be edited and moved, pictures added and painted over, before the same command is given again: what has changed is
asked, the rest is not. Bytes rather than times of files: a copied folder keeps its answers, and reading is nothing
beside asking.
"""

import dataclasses
import hashlib
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
# Asked about in place of images that cannot be read, so that the others keep their numbers, by which they are drawn.
_BLANK = Image.new("RGB", (56, 56))
Key = tuple[Any, ...]  # what an answer is known by


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
    """Asks whatever has no answer yet.

    Items are drawn by seed and number, in windows that are always the same. A window that lacks an answer is asked
    whole, so that a run that was killed comes out to the last bit as one that was not. Where temperature has answers
    depend on numbers, an item that has got another number is asked anew.

    Args:
      load: gives the model; not called where all is answered, or nothing else can be read.
      items: all of them.
      output: JSON lines of "number", "image", "digest", "quarter", "question" and "answer", appended to.
      settings: how answers are drawn.
      seed: see above.
      made_with: what the answers depend on beside the settings and the seed.

    Returns:
      number of an item -> its answer; none where its image could not be read, which is told.

    Raises:
      ValueError: if the file holds something else, or was made with other settings.
    """
    drawn = settings.temperature > 0
    said = _answers(output, drawn)
    output.parent.mkdir(parents=True, exist_ok=True)
    beside = output.with_name(output.name + ".settings.json")
    same_settings(beside, dict(made_with), f"{output} has {len(said)} answers written", fresh=not said)
    model, found = None, {}
    with (
        tqdm.tqdm(total=len(items), desc="asking", unit=" question", file=sys.stderr) as bar,
        output.open("a", encoding="utf-8") as lines,
    ):
        files = _Files(lambda told: bar.write(f"uae: skipped: {told}", file=sys.stderr))
        for first in range(0, len(items), WINDOW):
            window = dict(enumerate(items[first : first + WINDOW], start=first))
            records = {number: _record(number, item, files.digest(item.image)) for number, item in window.items()}
            keys = {number: _key(record, drawn) for number, record in records.items()}
            if files.open({number: item for number, item in window.items() if keys[number] not in said}):
                opened = files.open(window)
                model = model or load()
                pictures = [opened.get(number, _BLANK) for number in window]
                texts = [item.text for item in window.values()]
                for place, answer in model.iter_answers(pictures, texts, settings, seed=seed, first=first):
                    number = first + place
                    if number in opened and keys[number] not in said:
                        said[keys[number]] = answer
                        lines.write(json.dumps({**records[number], "answer": answer}) + "\n")
                lines.flush()
            found |= {number: said[key] for number, key in keys.items() if key in said}
            bar.update(len(window))
    return found


def _record(number: int, item: Item, digest: str) -> dict[str, Any]:
    """What is kept of a question beside its answer."""
    about = {"number": number, "image": str(item.image), "digest": digest}
    return about | {"quarter": item.quarter, "question": item.text}


def _key(record: Mapping[str, Any], drawn: bool) -> Key:
    """Takes what an answer depends on; its number only where it is drawn by it."""
    about = str(record["digest"]), record["quarter"], str(record["question"])
    return (*about, int(record["number"])) if drawn else about


def _answers(output: Path, drawn: bool) -> dict[Key, str]:
    """Answers that are there already; a last line that was cut off is dropped."""
    if not output.is_file():
        return {}
    try:
        whole = output.read_text(encoding="utf-8").split("\n")[:-1]
        records = [json.loads(line) for line in whole]
        texts = [str(record["answer"]) for record in records]
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{output} holds something else than answers; choose another --output") from None
    try:
        said = {_key(record, drawn): text for record, text in zip(records, texts, strict=True)}
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            f"{output} holds answers that do not say which image they are about, as an earlier version wrote them; "
            "choose another --output"
        ) from None
    write_whole(output, "".join(line + "\n" for line in whole))
    return said


class _Files:
    """Image files: what they hold, each told once where it cannot be read."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._digests, self._unreadable = tell, {}, set()

    def digest(self, file: Path) -> str:
        """SHA-256 of a file's bytes; "" where there is none."""
        if file not in self._digests:
            try:
                with file.open("rb") as opened:
                    self._digests[file] = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError:
                self._digests[file] = ""
        return self._digests[file]

    def open(self, items: Mapping[int, Item]) -> dict[int, Image.Image]:
        """Images, or quarters, that can be opened."""
        opened: dict[int, Image.Image] = {}
        whole: dict[Path, Image.Image] = {}
        for number, item in items.items():
            file = item.image
            if file not in whole and file not in self._unreadable:
                try:
                    whole[file] = open_image(file)
                except ImageError as error:
                    self._unreadable.add(file)
                    self._tell(str(error))
            if file in whole:
                opened[number] = whole[file] if item.quarter is None else quarter(whole[file], item.quarter)
        return opened
