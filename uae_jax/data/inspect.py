"""What a source holds: how many records, sizes of images, lengths of captions, and what is wrong with which."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from uae_jax.data.images import ImageError, ImageLimits, open_image
from uae_jax.data.records import Record, Source
from uae_jax.data.validity import CaptionError, RecordError, Tally, alternatives, usable_caption

SIDES = (64, 128, 256, 512, 1024, 2048)  # pixels, square root of the area: upper bounds of the histogram's bars
_RATIOS = ((1, 3), (1, 2), (2, 3), (3, 4), (1, 1), (4, 3), (3, 2), (2, 1), (3, 1))
ASPECTS = {f"{width}:{height}": width / height for width, height in _RATIOS}
LENGTHS = (5, 10, 20, 50, 100, 200, 500, 1000)  # words or tokens, likewise
THUMBNAIL = 256  # pixels of the longer side

CountTokens = Callable[[str], int]


@dataclasses.dataclass
class Card:
    """One record to look at: a small image, and every usable caption."""

    id: str
    size: tuple[int, int]
    thumbnail: Image.Image
    captions: list[tuple[str, str]]


@dataclasses.dataclass
class Lengths:
    """Lengths of the usable captions of one field, and how many are not usable."""

    words: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    unusable: int = 0


@dataclasses.dataclass
class Inspection:
    """What was found.

    Attributes:
      source: its name.
      records: that it has.
      tally: of the records that were looked at. One is used if its image and one caption are usable; kinds begin with
        "image", "caption" or "record".
      sizes: (width, height) of the usable images.
      fields: caption field -> lengths.
      reasons: kind of bad records -> what is wrong with the first of them.
      cards: some of the usable records, evenly spread.
    """

    source: str
    records: int
    tally: Tally = dataclasses.field(default_factory=Tally)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    fields: dict[str, Lengths] = dataclasses.field(default_factory=dict)
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    cards: list[Card] = dataclasses.field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything but the cards."""
        return {
            "source": self.source,
            "records": self.records,
            "inspected": self.tally.seen,
            "used": self.tally.used,
            "images": {
                "usable": len(self.sizes),
                "side": summary(areas_root(self.sizes)),
                "sides": side_histogram(self.sizes),
                "aspects": aspect_histogram(self.sizes),
            },
            "captions": {name: _lengths_json(lengths) for name, lengths in self.fields.items()},
            "tally": self.tally.to_json(),
            "reasons": self.reasons,
        }


def inspect(
    source: Source,
    *,
    limit: int | None = None,
    cards: int = 60,
    images: bool = True,
    count_tokens: CountTokens | None = None,
    limits: ImageLimits = ImageLimits(),
    progress: Callable[[], Any] = lambda: None,
) -> Inspection:
    """Reads and decodes records, one at a time.

    Args:
      source: what to look at.
      limit: look at so many, evenly spread over the source; None looks at all.
      cards: how many to keep for looking at.
      images: False for a source that has none.
      count_tokens: of a caption, where a tokenizer is at hand.
      limits: what is an image.
      progress: called after each record.
    """
    result = Inspection(source.name, len(source))
    indices = spread(len(source), len(source) if limit is None else limit)
    shown = set(spread(len(indices), cards))
    for number, index in enumerate(indices):
        _inspect_one(source, index, result, number in shown, images, count_tokens, limits)
        progress()
    return result


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spread, the first among them."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]


def _inspect_one(
    source: Source,
    index: int,
    result: Inspection,
    shown: bool,
    images: bool,
    count_tokens: CountTokens | None,
    limits: ImageLimits,
) -> None:
    id, notes, image = "", [], None
    try:
        record = source[index]
        id = record.id
        if images:
            image = open_image(record.image, limits, notes.append)
            result.sizes.append(image.size)
        captions = list(_usable(record, result.fields, count_tokens))
    except (ImageError, RecordError) as error:
        what = "image" if isinstance(error, ImageError) else "caption" if isinstance(error, CaptionError) else "record"
        kind, id = f"{what} {error.kind}", id or source.id(index)
        result.tally.skip(id, kind)
        result.reasons.setdefault(kind, str(error) if str(error).startswith(id) else f"{id}: {error}")
        return
    result.tally.use(id, notes)
    if shown and image is not None:
        size = image.size
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        result.cards.append(Card(id, size, image, captions))


def _usable(record: Record, fields: dict[str, Lengths], count_tokens: CountTokens | None) -> Iterator[tuple[str, str]]:
    """Yields (field, text) of every usable caption, having counted it; raises the first fault if there is none."""
    fault, found = None, False
    for field, stored in record.captions.items():
        lengths = fields.setdefault(field, Lengths())
        for value in alternatives(stored):
            try:
                text = usable_caption(value)
            except CaptionError as error:
                lengths.unusable += 1
                fault = fault or error
                continue
            found = True
            lengths.words.append(len(text.split()))
            if count_tokens is not None:
                lengths.tokens.append(count_tokens(text))
            yield field, text
    if not found:
        raise fault or CaptionError("missing", "no caption")


def summary(values: Sequence[float]) -> dict[str, float] | None:
    """Least, median, mean and greatest; None of nothing."""
    if not values:
        return None
    least, middle, greatest = np.percentile(values, [0, 50, 100])
    return {"min": float(least), "median": float(middle), "mean": float(np.mean(values)), "max": float(greatest)}


def histogram(values: Sequence[float], bounds: Sequence[int]) -> dict[str, int]:
    """Counts below the first bound, from each up to the next, and from the last on; no empty bars at the ends."""
    between = [f"{low} - {high - 1}" for low, high in itertools.pairwise(bounds)]
    labels = [f"< {bounds[0]}", *between, f">= {bounds[-1]}"]
    counts = np.bincount(np.digitize(values, bounds), minlength=len(labels))
    return _trimmed(dict(zip(labels, counts.tolist(), strict=True)))


def side_histogram(sizes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Of the square roots of areas, in pixels."""
    return histogram(areas_root(sizes), SIDES)


def areas_root(sizes: Sequence[tuple[int, int]]) -> list[float]:
    """The side of the square that has as many pixels as each image."""
    return [(width * height) ** 0.5 for width, height in sizes]


def aspect_histogram(sizes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Of width : height, each image at the nearest of `ASPECTS` in logarithm."""
    marks = np.log(list(ASPECTS.values()))
    nearest = [int(np.argmin(np.abs(np.log(w / h) - marks))) for w, h in sizes]
    counts = np.bincount(nearest, minlength=len(marks))
    return _trimmed(dict(zip(ASPECTS, counts.tolist(), strict=True)))


def _trimmed(bars: dict[str, int]) -> dict[str, int]:
    filled = [place for place, count in enumerate(bars.values()) if count]
    return dict(list(bars.items())[filled[0] : filled[-1] + 1]) if filled else {}


def _lengths_json(lengths: Lengths) -> dict[str, Any]:
    result: dict[str, Any] = {"usable": len(lengths.words), "unusable": lengths.unusable}
    for name in ("words", "tokens"):
        values = getattr(lengths, name)
        if values or name == "words":
            result[name] = {"summary": summary(values), "histogram": histogram(values, LENGTHS)}
    return result


def to_text(result: Inspection) -> str:
    """A table for the terminal."""
    tally = result.tally
    lines = [
        result.source,
        f"records {result.records}, inspected {tally.seen}, used {tally.used}, "
        f"skipped {tally.bad} ({tally.bad_fraction:.2%})",
    ]
    if result.sizes:
        sides = _summary_line(areas_root(result.sizes))
        lines += ["", f"images {len(result.sizes)}: side in pixels (square root of the area), {sides}"]
        lines += [*bars(side_histogram(result.sizes)), "width : height", *bars(aspect_histogram(result.sizes))]
    for name, lengths in result.fields.items():
        unusable = f", {lengths.unusable} not usable" if lengths.unusable else ""
        lines += ["", f"caption {name!r}: {len(lengths.words)}{unusable}"]
        for unit in ("words", "tokens"):
            if values := getattr(lengths, unit):
                lines += [f"{unit}, {_summary_line(values)}", *bars(histogram(values, LENGTHS))]
    if tally.skipped or tally.converted:
        lines += ["", tally.table()]
    if result.reasons:
        lines += ["", "the first of each kind", *(f"  {kind}: {why}" for kind, why in result.reasons.items())]
    return "\n".join(lines)


def _summary_line(values: Sequence[float]) -> str:
    return ", ".join(f"{name} {round(value, 1):g}" for name, value in summary(values).items())


def bars(counts: dict[str, int], width: int = 40) -> list[str]:
    """A histogram in text, a line a bar."""
    most = max(counts.values(), default=1)
    return [f"  {label:>10} {count:>8} {'#' * round(width * count / most)}".rstrip() for label, count in counts.items()]
