"""Reads and writes safetensors files one tensor at a time, in every dtype that JAX has.

The `safetensors` package's NumPy side knows no bfloat16 and maps whole files into memory; the format is a JSON header
and raw bytes, so this module checks the header completely before anything is allocated and then reads one byte range
per tensor. Format: https://github.com/huggingface/safetensors#format.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from uae_jax.weights.errors import WeightsError

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
METADATA = "__metadata__"
_MAX_AXES = 64  # NumPy's limit

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is still on disk.

    Attributes:
      key: its name in the file.
      file: where it is, for messages.
      shape, dtype: as the header states them.
      read: fetches the bytes; each call reads anew and the caller owns the array.
    """

    key: str
    file: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    def rows(self, start: int, stop: int) -> "Tensor":
        """The part [start, stop) of the first axis, as a tensor of its own."""
        shape = (stop - start, *self.shape[1:])
        return dataclasses.replace(self, shape=shape, read=lambda: self.read()[start:stop])


def open_file(path: str | os.PathLike) -> dict[str, Tensor]:
    """Lists the tensors of one file, having checked its header against its size.

    Raises:
      WeightsError: in one line, naming the file and, where it is one tensor's fault, the key.
    """
    path = Path(path)
    header, start, size = _read_header(path)
    tensors, spans = {}, []
    for key, entry in header.items():
        if key == METADATA:
            continue
        tensor, span = _parse_entry(path, key, entry, start)
        tensors[key] = tensor
        spans.append((*span, key))
    _check_layout(path, spans, size - start)
    return tensors


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the free text that a file carries beside its tensors; raises as `open_file`."""
    return _read_header(Path(path))[0].get(METADATA, {})


def parse_object(path: Path, text: bytes, what: str = "file") -> dict:
    """Parses a JSON object out of a file that nobody vouches for.

    Raises:
      WeightsError: if it is anything else, nests without end, or states a key twice.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys(path, what))
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, a number of thousands of digits
        raise WeightsError(f"{path}: {what} is not JSON ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: {what} is a JSON {type(value).__name__}, wanted an object")
    return value


def _unique_keys(path: Path, what: str) -> Callable[[list], dict]:
    def build(pairs: list) -> dict:
        result: dict = {}
        for key, value in pairs:
            if key in result:
                raise WeightsError(f"{path}: {what}: key {key!r} stands there twice, wanted once")
            result[key] = value
        return result

    return build


def _read_header(path: Path) -> tuple[dict, int, int]:
    """Returns the header, the byte at which the data begins, and the size of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise WeightsError(f"{path}: {size} bytes, wanted at least 8; this is no safetensors file")
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            if header_bytes > MAX_HEADER_BYTES:
                raise WeightsError(f"{path}: header of {header_bytes} bytes, wanted at most {MAX_HEADER_BYTES}")
            if 8 + header_bytes > size:
                raise WeightsError(f"{path}: truncated: header ends at byte {8 + header_bytes}, the file at {size}")
            text = file.read(header_bytes)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}, wanted a safetensors file") from None
    header = parse_object(path, text, "header")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{path}: {METADATA} is malformed, wanted an object of strings")
    return header, 8 + header_bytes, size


def _parse_entry(path: Path, key: str, entry: object, start: int) -> tuple[Tensor, tuple[int, int]]:
    try:
        dtype_name, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = isinstance(dtype_name, str) and len(shape) <= _MAX_AXES
        valid = valid and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise WeightsError(f"{path}: {key}: header entry is malformed, wanted dtype, shape and data_offsets")
    if dtype_name not in DTYPES:
        raise WeightsError(f"{path}: {key}: dtype {dtype_name!r}, wanted one of {', '.join(DTYPES)}")
    dtype = DTYPES[dtype_name]
    # An axis of length 0 hides the others from the byte count, and NumPy still refuses what cannot be addressed.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise WeightsError(f"{path}: {key}: shape {list(shape)} overflows, wanted less than 2**63 bytes")
    wanted = math.prod(shape) * dtype.itemsize
    if end - begin != wanted:
        raise WeightsError(f"{path}: {key}: {end - begin} bytes, wanted {wanted} for {dtype_name}{list(shape)}")

    def read() -> np.ndarray:
        try:
            array = np.fromfile(path, dtype=dtype, count=math.prod(shape), offset=start + begin)
        except OSError as error:
            raise WeightsError(f"{path}: {key}: {error.strerror}, wanted {wanted} bytes") from None
        if array.size != math.prod(shape):  # the file shrank since its header was checked
            raise WeightsError(f"{path}: {key}: {array.nbytes} bytes left in the file, wanted {wanted}")
        return array.reshape(shape)

    return Tensor(key, str(path), shape, dtype, read), (begin, end)


def _check_layout(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Tensors must cover the data section exactly: no overlap, no gap, nothing behind the end."""
    position, last = 0, "(no tensor)"
    for begin, end, key in sorted(spans):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise WeightsError(f"{path}: {key}: starts at data byte {begin}, wanted {position}; it {what}")
        position, last = end, key
    if position != data_bytes:
        what = "truncated" if position > data_bytes else "unclaimed bytes at the end"
        raise WeightsError(f"{path}: {last}: data ends at byte {data_bytes}, wanted {position}; {what}")


def write_file(
    path: str | os.PathLike,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[np.ndarray],
) -> None:
    """Writes one file, holding one tensor in memory at a time.

    Args:
      path: the new file.
      tensors: key -> (shape, dtype), in the order of `arrays`. Readers that map the file want each tensor aligned to
        its own dtype, so put wider dtypes first.
      arrays: the values, made one by one as they are written.

    Raises:
      WeightsError: on a dtype that the format lacks, or a value that is not what `tensors` says of it.
    """
    header: dict[str, object] = {METADATA: {"format": "pt"}}  # transformers refuses a file that lacks this
    offset = 0
    for key, (shape, dtype) in tensors.items():
        if np.dtype(dtype) not in _NAMES or key == METADATA:
            raise WeightsError(f"{path}: {key}: a {dtype} tensor, wanted another name or one of {', '.join(DTYPES)}")
        end = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[key] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        values = iter(arrays)
        for key, (shape, dtype) in tensors.items():
            array = next(values)
            if array.shape != tuple(shape) or array.dtype != dtype:
                raise WeightsError(f"{path}: {key}: got {array.dtype}{array.shape}, wanted {dtype}{tuple(shape)}")
            # By its bytes: the buffer protocol has no name for bfloat16.
            file.write(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
            del array  # before the next one is made, or there are two
        file.flush()
        os.fsync(file.fileno())
