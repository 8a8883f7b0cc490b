"""What all sources share: their errors, reading by path and by range of bytes, and which columns hold captions.

Paths go through `etils.epath`, so that remote ones work where its libraries are installed. Local images stay paths
until they are decoded; remote ones are read when the record is. Files are opened for each read and closed again, so
that a source holds nothing that threads or forks could share.
"""

import difflib
import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath

from uae_jax.data.images import ImageError
from uae_jax.data.validity import RecordError
from uae_jax.paths import is_remote

MAX_IMAGE_BYTES = 256 << 20  # of an encoded image; 64 megapixels of 16-bit RGB fit, uncompressed archives do not
MAX_TEXT_BYTES = 16 << 20  # of a caption file, or one row of a table
CAPTION_WORDS = ("caption", "captions", "text", "txt", "prompt", "description")


class SourceError(ValueError):
    """A source cannot be opened; one line says what is there, what was wanted, and what helps."""


def need(module: str, package: str, what: str) -> ModuleType:
    """Imports an optional library.

    Raises:
      SourceError: if it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SourceError(f"{what} needs {package}, which is not installed; pip install {package}") from None


def nearest(name: str, names: Sequence[str], what: str, where: str) -> str:
    """Returns `name`, if it is one of the names.

    Raises:
      SourceError: naming the nearest and all there are.
    """
    if name in names:
        return name
    shown = ", ".join(map(str, names)) or "none"
    near = difflib.get_close_matches(name, [str(n) for n in names], n=1, cutoff=0.0)
    hint = f", the nearest is {near[0]!r}" if near else ""
    raise SourceError(f"{where}: no {what} {name!r}{hint}; all: {shown}")


def caption_columns(columns: Sequence[str], wanted: Sequence[str], where: str) -> tuple[str, ...]:
    """Which columns hold captions.

    Args:
      columns: all there are.
      wanted: those that the settings name; () takes each whose name has a word of `CAPTION_WORDS` in it.
      where: names the source in messages.

    Raises:
      SourceError: if a wanted one is not there; names the nearest. Without wanted ones there may be none.
    """
    if wanted:
        return tuple(nearest(name, columns, "column", where) for name in wanted)
    return tuple(name for name in columns if looks_like_caption(name))


def looks_like_caption(name: str) -> bool:
    """Whether a column or key is called as captions are: "caption", "long_caption", "text.en", ..."""
    words = "".join(c if c.isalnum() else " " for c in str(name).lower()).split()
    return any(word in CAPTION_WORDS for word in words)


def check_index(index: int, count: int, where: str) -> int:
    """Returns the index as a plain int; `IndexError` outside [0, count)."""
    index = int(index)
    if not 0 <= index < count:
        raise IndexError(f"{where}: record {index} of {count}")
    return index


def read_range(path: str, offset: int, size: int) -> bytes:
    """Reads bytes [offset, offset + size) of a file.

    Raises:
      RecordError: "truncated" if the file ends before, "unreadable" if it cannot be read.
    """
    try:
        with epath.Path(path).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise RecordError("unreadable", f"{path}: {error.strerror or error}") from None
    if len(data) != size:
        raise RecordError("truncated", f"{path}: ends at byte {offset + len(data)}, wanted {offset + size}")
    return data


def read_text(path: epath.Path) -> bytes | None:
    """Reads a caption file as bytes, whose coding is checked later; None if there is none.

    Raises:
      RecordError: if it is too large or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordError("unreadable", f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise RecordError("large", f"{path}: more than {MAX_TEXT_BYTES} bytes of text")
    return data


def image_at(path: epath.Path) -> Any:
    """What `open_image` takes for the file at a path: the path itself, or the bytes of a remote one."""
    if not is_remote(path):
        return os.fspath(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except FileNotFoundError:
        raise ImageError("missing", f"{path}: no such file") from None
    except OSError as error:
        raise ImageError("unreadable", f"{path}: {error.strerror or error}") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError("large", f"{path}: more than {MAX_IMAGE_BYTES} bytes, wanted an image")
    return data


def image_under(folder: epath.Path, name: str) -> Any:
    """What `open_image` takes for an image that a table names, relative to its folder or absolute.

    Raises:
      ImageError: "outside" if a relative name leaves the folder.
    """
    if is_remote(name) or os.path.isabs(name):
        return image_at(epath.Path(name))
    if ".." in name.replace("\\", "/").split("/"):
        raise ImageError("outside", f"{name}: leaves the folder {folder}, wanted a path inside it or an absolute one")
    return image_at(folder / name)


def stored_image(value: Any, folder: epath.Path) -> Any:
    """What `open_image` takes for a value of an image column: bytes, pixels, a path, or a struct of bytes and path."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        return image_under(folder, value) if value.strip() else None
    if isinstance(value, bytes | np.ndarray) or value is None:
        return value
    raise ImageError("type", f"image is a {type(value).__name__}, wanted a path or bytes")
