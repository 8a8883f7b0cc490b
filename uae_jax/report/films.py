"""What evaluations drew, inside the page: the first and the last side by side, and a film of those between."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, features

from uae_jax.data.images import ImageError, ImageLimits, open_image
from uae_jax.html import data_uri, encoded, text
from uae_jax.report.runs import Run

FRAMES = 12  # of a picture at most
_BUDGET = 9_000_000  # bytes of all image files of a report; as text they take a third more
_MOST, _LEAST = 400_000, 20_000  # bytes of one; below the least, frames are left out instead
_LIMITS = ImageLimits(min_side=1, max_aspect=1000)
_LARGEST = (1200, 6000)  # pixels
_LADDER = ((1, 85), (1, 70), (1, 50), (0.7, 60), (0.5, 60), (0.35, 60), (0.25, 60), (0.125, 60))  # size, quality
_PNG = b"\x89PNG"


def allowance(runs: Sequence[Run]) -> tuple[int, int]:
    """How many frames of each picture, and how many bytes for each, keep a report of these runs small."""
    films = [steps for run in runs for steps in run.pictures.values()]
    frames = min(FRAMES, max(2, _BUDGET // (_LEAST * max(len(films), 1))))
    images = sum(min(frames, len(steps)) for steps in films)
    return frames, min(_MOST, _BUDGET // max(images, 1))


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many (2 or more), evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def film(name: str, files: Mapping[int, Path], frames: int, most_bytes: int) -> str:
    """One picture over the steps of a run.

    Without scripts the frames between the first and the last are there to be unfolded; with them, a slider goes
    through all. No image is in the page twice.

    Args:
      name: of the picture.
      files: step -> file; those that cannot be read are named instead of shown.
      frames: how many of them to show at most.
      most_bytes: for each.
    """
    chosen = spread(sorted(files), frames)
    first, *between = chosen if len(chosen) == 1 else [chosen[0], *chosen[1:-1]]
    tags = {step: _tag(name, step, files[step], most_bytes) for step in chosen}
    ends = _figure("step", first, tags) if len(chosen) == 1 else _pair(first, chosen[-1], tags)
    folded = "".join(f"<details><summary>step {step:,}</summary>{tags[step]}</details>" for step in between)
    left_out = len(files) - len(chosen)
    note = f'<p class="counts">{len(chosen)} of {len(files)} evaluations, evenly spread</p>' if left_out else ""
    strip = f'<div class="strip">{folded}</div>' if folded else ""
    return f'<section class="film"><h4>{text(name)}</h4>{note}<div class="ends">{ends}</div>{strip}</section>'


def _pair(first: int, last: int, tags: Mapping[int, str]) -> str:
    return _figure("before: step", first, tags) + _figure("after: step", last, tags)


def _figure(title: str, step: int, tags: Mapping[int, str]) -> str:
    return f"<figure><figcaption>{title} {step:,}</figcaption>{tags[step]}</figure>"


def _tag(name: str, step: int, file: Path, most_bytes: int) -> str:
    try:
        data, kind = fitted(file.read_bytes(), most_bytes)
    except (ImageError, OSError) as error:
        return f'<p class="counts">cannot be shown: {text(error)}</p>'
    return f'<img data-step="{step}" alt="{text(name)} at step {step:,}" src="{data_uri(data, kind)}">'


def fitted(data: bytes, most_bytes: int) -> tuple[bytes, str]:
    """An image file of at most so many bytes, as it is if it fits, and its kind.

    Larger ones are compressed with loss, then reduced as well, down to an eighth.

    Raises:
      ImageError: if it is no image.
    """
    image = open_image(data, _LIMITS)
    if data.startswith(_PNG) and len(data) <= most_bytes and image.width <= _LARGEST[0] and image.height <= _LARGEST[1]:
        return data, "PNG"
    kind = "WEBP" if features.check("webp") else "JPEG"
    image.thumbnail(_LARGEST, Image.Resampling.LANCZOS)
    for factor, quality in _LADDER:
        size = [max(1, round(side * factor)) for side in image.size]
        data = encoded(image.resize(size, Image.Resampling.LANCZOS) if factor < 1 else image, kind, quality=quality)
        if len(data) <= most_bytes:
            break
    return data, kind
