"""Images from anywhere, as upright 8-bit RGB; what cannot be one is refused by kind.

The limits and conversions are those of the reliability table: small sides, extreme shapes and oversized headers are
refused before decoding; alpha is laid over white, CMYK and palettes become RGB, 16-bit pixels are scaled by their own
range, of an animation the first frame is taken.
"""

import contextlib
import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PLANAR_CONFIGURATION

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What is decoded at all, whatever a file is called. Pillow knows more, some of which starts other programs (EPS).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# How Pillow calls 16-bit colours in a file -> what gives their other bytes; N is the order of this machine.
_SWAPPED = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_GREY_ALPHA = "LA;16B"
_OTHER_HALF = {_GREY_ALPHA: "RGBA"}  # all its bytes: grey, its lower one, alpha, its lower one
for _bands in ("RGB", "RGBA", "RGBX", "CMYK"):
    _OTHER_HALF |= {f"{_bands};16{order}": f"{_bands};16{other}" for order, other in _SWAPPED.items()}
Note = Callable[[str], None]  # takes the name of a conversion


class ImageError(ValueError):
    """An image cannot be used; `kind` says why in one word, the message in one line."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What is still an image worth decoding.

    Attributes:
      min_side: pixels of the shorter side.
      max_aspect: longer side over shorter.
      max_pixels: by the header, before decoding.
    """

    min_side: int = 16
    max_aspect: float = 10.0
    max_pixels: int = 64_000_000


def open_image(source: Any, limits: ImageLimits = ImageLimits(), note: Note | None = None) -> Image.Image:
    """Opens a path, bytes, a PIL image or an array as an upright RGB image.

    Args:
      source: path, encoded bytes, `PIL.Image.Image`, or uint8 array [H, W], [H, W, 3] or [H, W, 4].
      limits: what is refused by size.
      note: told of each conversion that loses something: "16-bit", "cmyk", "alpha", "animation".

    Raises:
      ImageError: in one line, naming the file where there is one.
    """
    if isinstance(source, np.ndarray) or (hasattr(source, "__array__") and not isinstance(source, Image.Image)):
        return to_rgb(_from_array(np.asarray(source)), limits, "array", note)
    if isinstance(source, Image.Image):
        with _refusing("image"):
            return to_rgb(source, limits, "image", note)
    if isinstance(source, bytes):
        return _decode(lambda: io.BytesIO(source), limits, "bytes", note)
    if source is None:
        raise ImageError("missing", "no image")
    try:
        path = Path(os.fspath(source))
    except TypeError:
        raise ImageError("type", f"image is a {type(source).__name__}, wanted a path, bytes or pixels") from None
    if not path.is_file():
        raise ImageError("missing", f"{path}: no such file")
    return _decode(lambda: open(path, "rb"), limits, str(path), note)


def _decode(opened: Callable[[], BinaryIO], limits: ImageLimits, name: str, note: Note | None) -> Image.Image:
    with _refusing(name), opened() as file, _strictly():
        if not file.read(1):
            raise ImageError("empty", f"{name}: empty file")
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            check_size(image.size, limits, name)
            if image.format == "PNG":  # decoding skips the pixels' checksums
                with opened() as again, Image.open(again, formats=["PNG"]) as copy:
                    copy.verify()
            animated = _is_animated(image)
            image.seek(0)
            low = _low_bytes(image, opened, name)
            image.load()
            if low is not None:
                _narrow(image, low, name)
                if note is not None:
                    note("16-bit")
            if animated and note is not None:
                note("animation")
            return to_rgb(image, limits, name, note)


def _low_bytes(image: ImageFile.ImageFile, opened: Callable[[], BinaryIO], name: str) -> np.ndarray | None:
    """Decodes the lower half of 16-bit colours, of which Pillow gives the upper half: u8[H, W, bands], or None.

    Told that the bytes are in the other order, it gives the other half.
    """
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA", "CMYK"):
        return None
    modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile]
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if not any(";16" in mode for mode in modes) and max(tags.get(BITSPERSAMPLE, (8,))) <= 8:
        return None
    others = [_OTHER_HALF.get(mode) for mode in modes]
    if None in others or tags.get(PLANAR_CONFIGURATION, 1) != 1:
        layout = "in planes of their own, or multiplied by alpha, wanted colours pixel by pixel"
        raise ImageError("depth", f"{name}: 16 bits {layout}; convert it to PNG")
    with opened() as again, Image.open(again, formats=[image.format]) as low:
        low.tile = [
            tile._replace(args=other if isinstance(tile.args, str) else (other, *tile.args[1:]))
            for tile, other in zip(low.tile, others, strict=True)
        ]
        low.load()
        return np.asarray(low)[..., [1, 1, 1, 3]] if modes == [_GREY_ALPHA] else np.asarray(low)


def _narrow(image: Image.Image, low: np.ndarray, name: str) -> None:
    """Scales 16-bit colours by their own range, all by one, such that hues stay; alpha and metadata are as they were.

    Args:
      image: loaded, of the colours' upper bytes; is changed.
      low: their lower bytes, as `_low_bytes` gives them.
      name: for errors.
    """
    high = np.asarray(image)
    wide = high.astype(np.uint16) << 8 | low
    colours = wide if image.mode == "CMYK" else wide[..., :3]
    least = colours.min()
    levels = _scale(np.arange(least, int(colours.max()) + 1, dtype=np.float64), name)
    narrow = np.concatenate([levels[colours - least], high[..., colours.shape[-1] :]], axis=-1)
    image.paste(Image.frombytes(image.mode, image.size, narrow.tobytes()))
    if "transparency" in image.info:  # one colour, in 16 bits
        shown = (wide != image.info.pop("transparency")).any(axis=-1)
        image.putalpha(Image.fromarray(shown.astype(np.uint8) * 255))


def _is_animated(image: Image.Image) -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # something that is no frame follows the first
        return True


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into an `ImageError` of one line."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError("bomb", f"{name}: many more pixels than an image has") from None
    except Image.UnidentifiedImageError:
        raise ImageError("unreadable", f"{name}: not an image in {', '.join(FORMATS)}") from None
    except PermissionError as error:
        raise ImageError("unreadable", f"{name}: {error.strerror}") from None
    except Exception as error:  # decoders raise many kinds on broken data
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError("corrupt", f"{name}: broken image ({reason})") from None


@contextlib.contextmanager
def _strictly() -> Iterator[None]:
    """Keeps Pillow from passing broken images over, and from warning of what the limits refuse anyway."""
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def check_size(size: tuple[int, int], limits: ImageLimits, name: str) -> None:
    """Raises `ImageError` where (width, height) is outside the limits."""
    width, height = size
    shape = f"{width}x{height} pixels"
    if width * height > limits.max_pixels:
        raise ImageError("bomb", f"{name}: {shape}, wanted at most {limits.max_pixels} in all")
    if min(size) < limits.min_side:
        raise ImageError("small", f"{name}: {shape}, wanted sides of at least {limits.min_side}")
    if max(size) > limits.max_aspect * min(size):
        raise ImageError("aspect", f"{name}: {shape}, wanted sides of at most {limits.max_aspect:g} to 1")


def to_rgb(
    image: Image.Image, limits: ImageLimits = ImageLimits(), name: str = "image", note: Note | None = None
) -> Image.Image:
    """Turns any PIL image upright and into 8-bit RGB; `note` as in `open_image`."""
    note = note or (lambda conversion: None)
    check_size(image.size, limits, name)
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        scaled = _scale(np.asarray(image, np.float64), name)
        note("16-bit")
        return Image.fromarray(scaled).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        note("alpha")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode == "CMYK":
        note("cmyk")
    return image.convert("RGB")


def _scale(pixels: np.ndarray, name: str) -> np.ndarray:
    """More than 8 bits -> uint8, by the image's own range."""
    if not np.isfinite(pixels).all():
        raise ImageError("nan", f"{name}: pixels that are not finite numbers")
    low, high = pixels.min(), pixels.max()
    return np.round((pixels - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        got = f"{array.dtype}{list(array.shape)}"
        raise ImageError("array", f"array of {got}, wanted uint8 [H, W], [H, W, 3] or [H, W, 4]")
    return Image.fromarray(array)
