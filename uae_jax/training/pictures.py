"""Grids of images with captions, as an evaluation leaves them to be looked at."""

import io
import os
import re
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from uae_jax import paths
from uae_jax.stages.base import Picture

FOLDER = "pictures"
_LEAST_SIDE, _MOST_SIDE = 128, 512  # pixels of a shown image: shorter side, longer side
_LEAST_WIDTH = 480  # of the whole, so that texts have room
_MARGIN, _GAP = 20, 10
_FONT_SIZE, _LINE = 15, 21  # pixels
_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (34, 34, 38), (105, 105, 114), (226, 226, 230)


def render_grid(picture: Picture) -> np.ndarray:
    """Lays a picture out: headings, then rows of images, the text of each row below it.

    Small images are enlarged by whole factors without smoothing, so that their pixels can be seen; large ones are
    reduced. Texts are wrapped, never cut.

    Returns:
      u8[H, W, 3].

    Raises:
      ValueError: if rows, columns and texts do not go together, or an image is not u8[H, W, 3].
    """
    _check(picture)
    rows = [[_resized(image) for image in row] for row in picture.rows]
    font = ImageFont.load_default(_FONT_SIZE)
    widths = [
        max([round(font.getlength(heading)), *(row[column].width for row in rows)])
        for column, heading in enumerate(picture.columns)
    ]
    inner = max(_LEAST_WIDTH, sum(widths) + _GAP * (len(widths) - 1))
    texts = [_wrapped(text, font, inner) for text in picture.texts] or [[] for _ in rows]
    heights = [max(image.height for image in row) for row in rows]
    blocks = [
        height + (_GAP // 2 + _LINE * len(lines) if lines else 0) for height, lines in zip(heights, texts, strict=True)
    ]
    top = _MARGIN + _LINE + _GAP // 2
    between = _GAP + _GAP * any(texts)
    canvas = Image.new(
        "RGB", (inner + 2 * _MARGIN, top + sum(blocks) + between * max(len(blocks) - 1, 0) + _MARGIN), _PAPER
    )
    draw = ImageDraw.Draw(canvas)
    lefts = [_MARGIN + sum(widths[:column]) + _GAP * column for column in range(len(widths))]
    for left, heading in zip(lefts, picture.columns, strict=True):
        draw.text((left, _MARGIN), heading, _FAINT, font)
    for number, (row, lines, height, block) in enumerate(zip(rows, texts, heights, blocks, strict=True)):
        if number and any(texts):
            draw.line((_MARGIN, top - between // 2, _MARGIN + inner - 1, top - between // 2), _RULE)
        for left, image in zip(lefts, row, strict=True):
            draw.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=_RULE)
            canvas.paste(image, (left, top))
        for line_number, line in enumerate(lines):
            draw.text((_MARGIN, top + height + _GAP // 2 + line_number * _LINE), line, _INK, font)
        top += block + between
    return np.asarray(canvas)


def save_pictures(workdir: str | os.PathLike, step: int, pictures: Sequence[Picture]) -> dict[str, np.ndarray]:
    """Writes each picture to `workdir/pictures/<name>/<step>.png`, the step with eight digits.

    Returns:
      name -> u8[H, W, 3].

    Raises:
      ValueError: as `render_grid`, and if a name is not a plain file name or stands twice; before anything is written.
      OSError: if a file cannot be written.
    """
    names = [picture.name for picture in pictures]
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or names.count(name) > 1:
            raise ValueError(f"picture name {name!r}: wanted letters, digits, '_', '-' and '.', and each name once")
    grids = {picture.name: render_grid(picture) for picture in pictures}
    for name, grid in grids.items():
        folder = epath.Path(workdir) / FOLDER / name
        encoded = io.BytesIO()
        Image.fromarray(grid).save(encoded, format="PNG")
        with paths.os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        paths.write(folder / f"{step:08d}.png", encoded.getvalue())
    return grids


def _check(picture: Picture) -> None:
    if not picture.columns or not picture.rows:
        raise ValueError(f"picture {picture.name!r}: has no columns or no rows")
    if picture.texts and len(picture.texts) != len(picture.rows):
        raise ValueError(f"picture {picture.name!r}: {len(picture.texts)} texts for {len(picture.rows)} rows")
    for number, row in enumerate(picture.rows):
        if len(row) != len(picture.columns):
            raise ValueError(
                f"picture {picture.name!r}: row {number} has {len(row)} images for {len(picture.columns)} columns"
            )
        for image in row:
            shape, dtype = np.shape(image), np.asarray(image).dtype
            if len(shape) != 3 or shape[2] != 3 or dtype != np.uint8 or 0 in shape:
                raise ValueError(
                    f"picture {picture.name!r}: row {number}: {dtype}{list(shape)}, wanted uint8 [H, W, 3]"
                )


def _resized(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(np.asarray(image))
    factor = -(-_LEAST_SIDE // min(picture.size))  # rounded up
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if max(picture.size) > _MOST_SIDE:
        picture.thumbnail((_MOST_SIDE, _MOST_SIDE), Image.Resampling.LANCZOS)
    return picture


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels; words that are longer are broken."""
    lines = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            *full, line = _broken(word, font, width)
            lines += full
        lines.append(line)
    return lines


def _broken(word: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A word in pieces of at most `width` pixels."""
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
