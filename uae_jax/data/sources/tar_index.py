"""Where the samples of a tar shard are, found once and remembered.

Nothing is ever unpacked: members are read as ranges of bytes, their names are only keys. What is no plain file, or
would leave the folder if it were unpacked, marks its sample as unsafe. The index lies beside its shard, or in the
user's cache where that cannot be written, and counts for as long as the shard's size and time of change are the same.
"""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import tarfile
import uuid
import zipfile

import numpy as np
from etils import epath

from uae_jax.data.sources.base import SourceError, is_remote

FORMAT = 1
UNSAFE = "<unsafe>"  # the field of a member that is refused
_MEMBER = np.dtype([("sample", "<i4"), ("field", "<i4"), ("offset", "<i8"), ("size", "<i8")])


@dataclasses.dataclass
class TarIndex:
    """The samples of one shard.

    Attributes:
      keys: S[samples], in the order of their first members; UTF-8.
      fields: names of the kinds of members: what follows the first dot, in lower case.
      members: sorted by sample: numbers of sample and field, first byte, bytes.
      starts: i64[samples + 1], where each sample's members begin.
    """

    keys: np.ndarray
    fields: list[str]
    members: np.ndarray

    def __post_init__(self):
        self.starts = np.searchsorted(self.members["sample"], np.arange(len(self.keys) + 1))

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        """The name of a sample."""
        return self.keys[index].decode("utf-8", "backslashreplace")

    def sample(self, index: int) -> dict[str, tuple[int, int]]:
        """Field -> (first byte, bytes)."""
        part = self.members[self.starts[index] : self.starts[index + 1]]
        return {self.fields[field]: (int(offset), int(size)) for _, field, offset, size in part.tolist()}


def load_index(path: str) -> TarIndex:
    """Reads a shard's index, making it first if there is none or the shard has changed.

    Raises:
      SourceError: if the shard is no uncompressed tar file.
    """
    stamp = _stamp(path)
    places = _places(path)
    for place in places:
        index = _read(place, stamp)
        if index is not None:
            return index
    index = scan(path)
    for place in places:
        with contextlib.suppress(OSError):
            _write(place, stamp, index)
            break
    return index


def scan(path: str) -> TarIndex:
    """Goes through a shard's headers. A shard that ends too soon gives what came before, and a warning."""
    keys: dict[bytes, int] = {}
    fields: dict[str, int] = {}
    members: list[tuple[int, int, int, int]] = []
    size = epath.Path(path).stat().length
    try:
        with epath.Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                key, field = _split(member.name)
                if member.isdir() or not field:
                    continue
                if not _is_safe(member) or member.offset_data + member.size > size:
                    field = UNSAFE
                sample = keys.setdefault(key.encode("utf-8", "surrogateescape"), len(keys))
                number = fields.setdefault(field, len(fields))
                members.append((sample, number, member.offset_data, member.size))
                archive.members.clear()  # which it would keep until the end
    except tarfile.TarError as error:
        if not members:
            raise SourceError(f"{path}: {error}; wanted a tar file that is not compressed") from None
        logging.getLogger(__name__).warning("%s: %s after %d samples; copy it again", path, error, len(keys))
    table = np.array(members, _MEMBER)
    table = table[np.argsort(table["sample"], kind="stable")]
    return TarIndex(np.array(list(keys), np.bytes_), list(fields), table)


def _split(name: str) -> tuple[str, str]:
    """ "a/b.txt" -> ("a/b", "txt"): what follows the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, field = last.partition(".")
    return (folder + slash + stem, field.lower()) if stem else ("", "")


def _is_safe(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.name.startswith("/") and ".." not in member.name.split("/")


def _stamp(path: str) -> np.ndarray:
    """What changes with the file: size and time, of local ones to the nanosecond."""
    if is_remote(path):
        remote = epath.Path(path).stat()
        return np.array([FORMAT, remote.length, int(remote.mtime)], np.int64)
    local = os.stat(path)
    return np.array([FORMAT, local.st_size, local.st_mtime_ns], np.int64)


def _places(path: str) -> list[epath.Path]:
    cache = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uae_jax" / "webdataset"
    shard = epath.Path(path)
    where = path if is_remote(path) else os.path.abspath(path)
    return [shard.parent / f".{shard.name}.index.npz", cache / f"{hashlib.sha256(where.encode()).hexdigest()}.npz"]


def _read(place: epath.Path, stamp: np.ndarray) -> TarIndex | None:
    """None for an index that is not there, of another shard, or broken."""
    try:
        with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as stored:
            if not np.array_equal(stored["stamp"], stamp):
                return None
            members = stored["members"]
            if members.dtype != _MEMBER or stored["keys"].dtype.kind != "S":
                return None
            return TarIndex(stored["keys"], stored["fields"].tolist(), members)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(place: epath.Path, stamp: np.ndarray, index: TarIndex) -> None:
    """Writes whole or not at all, so that processes may do it at the same time."""
    buffer = io.BytesIO()
    np.savez(buffer, stamp=stamp, keys=index.keys, fields=np.array(index.fields, np.str_), members=index.members)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f"{place.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(buffer.getvalue())
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
