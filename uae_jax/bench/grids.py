"""Four paintings in one file, as DPG-Bench has them: top left, top right, bottom left, bottom right."""

from collections.abc import Sequence

from PIL import Image

COPIES = 4


def grid(images: Sequence[Image.Image]) -> Image.Image:
    """One image as it is, or four of one size in one."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    whole = Image.new("RGB", (2 * width, 2 * height))
    for number, image in enumerate(images):
        whole.paste(image, _corner(number, width, height))
    return whole


def quarter(whole: Image.Image, number: int) -> Image.Image:
    """One of the four, from 0."""
    width, height = whole.width // 2, whole.height // 2
    left, top = _corner(number, width, height)
    return whole.crop((left, top, left + width, top + height))


def _corner(number: int, width: int, height: int) -> tuple[int, int]:
    return number % 2 * width, number // 2 * height
