"""Records in one ArrayRecord file: the quickest to read in any order, and the only one that carries arrays.

A record is `UAEREC1\\n`, the length of a JSON header (4 bytes, little-endian), the header, the encoded image, and the
raw bytes of each array: {"id", "captions", "image": bytes, "arrays": [[name, dtype, shape], ...]}.
"""

import io
import json
import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from uae_jax.data.records import Record
from uae_jax.data.sources.base import SourceError, check_index, nearest, need
from uae_jax.data.validity import RecordError
from uae_jax.weights.safetensors import DTYPES

MAGIC = b"UAEREC1\n"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ArrayRecordSource:
    """What `write_array_record` wrote."""

    def __init__(self, path: str, captions: tuple[str, ...] = ()):
        """Opens the file.

        Raises:
          SourceError: if it holds something else, or its first record lacks a wanted caption field.
        """
        grain = need("grain", "grain", "an ArrayRecord file")
        self.name = path
        try:
            self._data = grain.sources.ArrayRecordDataSource([os.fspath(path)])
            count = len(self._data)
        except (RuntimeError, ValueError, OSError) as error:
            raise SourceError(f"{path}: no ArrayRecord file ({' '.join(str(error).split())[:200]})") from None
        if not count:
            raise SourceError(f"{path}: no record in it, wanted at least one")
        try:
            first = self[0]
        except RecordError as error:
            raise SourceError(f"{error}; `write_array_record` writes what is read here") from None
        for field in captions:
            nearest(field, list(first.captions), "caption field", path)
        self._captions = captions

    _captions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self), self.name)
        record = decode(self._data[index], self.id(index))
        if not self._captions:
            return record
        captions = {field: record.captions.get(field) for field in self._captions}
        return Record(record.id, record.image, captions, record.arrays)

    def id(self, index: int) -> str:
        return f"{Path(self.name).name}:{index}"


def write_array_record(path: str | os.PathLike, records: Iterable[Record]) -> int:
    """Writes records into a new file, one at a time; under another name until all are written.

    Args:
      path: of the file.
      records: images are kept as they are encoded; pixels become PNG. Captions must be what JSON can hold.

    Returns:
      How many.

    Raises:
      FileExistsError: if there is such a file.
      ValueError: on a dtype or caption that cannot be stored.
    """
    module = need("array_record.python.array_record_module", "array_record", "an ArrayRecord file")
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} would be overwritten; remove it, or choose another name")
    part = path.with_name(f".{path.name}.part")
    writer = module.ArrayRecordWriter(str(part), "group_size:1")  # each record can be read without its neighbours
    count = 0
    try:
        for count, record in enumerate(records, start=1):  # noqa: B007
            writer.write(encode(record))
        writer.close()
        part.replace(path)
    finally:
        if writer.is_open():
            writer.close()
        part.unlink(missing_ok=True)
    return count


def encode(record: Record) -> bytes:
    """One record as bytes."""
    image = _encoded_image(record.image)
    arrays = {name: np.asarray(array) for name, array in record.arrays.items()}
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise ValueError(f"{record.id}: array {name!r} is {array.dtype}, wanted one of {', '.join(DTYPES)}")
    header = {
        "id": record.id,
        "captions": {field: _plain(value) for field, value in record.captions.items()},
        "image": None if image is None else len(image),
        "arrays": [[name, _NAMES[array.dtype], list(array.shape)] for name, array in arrays.items()],
    }
    try:
        text = json.dumps(header).encode()
    except TypeError as error:
        raise ValueError(f"{record.id}: a caption that JSON cannot hold ({error})") from None
    values = [np.asarray(array, order="C").reshape(-1).view(np.uint8).tobytes() for array in arrays.values()]
    return b"".join([MAGIC, struct.pack("<I", len(text)), text, image or b"", *values])


def decode(data: bytes, where: str) -> Record:
    """Reads what `encode` wrote.

    Raises:
      RecordError: "format" if it is anything else; every length is checked before it is used.
    """
    start = len(MAGIC) + 4
    if len(data) < start or not data.startswith(MAGIC):
        raise RecordError("format", f"{where}: no record of this format")
    end = start + struct.unpack_from("<I", data, len(MAGIC))[0]
    try:
        header = json.loads(data[start:end])
        captions, count = dict(header["captions"]), header["image"]
        specs = [(str(name), DTYPES[dtype], tuple(map(int, shape))) for name, dtype, shape in header["arrays"]]
        sizes = [math.prod(shape) * dtype.itemsize for _, dtype, shape in specs]
        whole = end + (count or 0) + sum(sizes) == len(data)
        whole &= (count or 0) >= 0 and all(n >= 0 for _, _, shape in specs for n in shape)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise RecordError("format", f"{where}: header is malformed, or does not fit the record's {len(data)} bytes")
    image = None if count is None else data[end : end + count]
    position, arrays = end + (count or 0), {}
    for (name, dtype, shape), size in zip(specs, sizes, strict=True):
        flat = np.frombuffer(data, np.uint8, size, position).copy()  # aligned, and the caller's own
        arrays[name] = flat.view(dtype).reshape(shape)
        position += size
    return Record(str(header.get("id", where)), image, captions, arrays)


def _encoded_image(image: Any) -> bytes | None:
    if image is None or isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(buffer, "PNG")
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """A caption as JSON has it; bytes that are no UTF-8 stay recognisable as such."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    return value
