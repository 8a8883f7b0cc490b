"""WebDataset tar shards, by random access: members of one name are a sample, `000017.jpg` with `000017.txt`.

Caption fields: `.txt` is "caption", `.long.txt` is "long", and each key of `.json` goes by its own name.
"""

import glob
import itertools
import json
import os
import re
from typing import Any

import numpy as np
from etils import epath

from uae_jax.data.images import SUFFIXES, ImageError
from uae_jax.data.records import Record
from uae_jax.data.sources import tar_index
from uae_jax.data.sources.base import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    SourceError,
    check_index,
    is_remote,
    looks_like_caption,
    nearest,
    read_range,
)
from uae_jax.data.validity import RecordError

_SAMPLED = 20  # samples whose fields are those of the source


class WebDatasetSource:
    """Samples of all shards, in the order of their names."""

    def __init__(self, path: str, captions: tuple[str, ...] = ()):
        """Finds the shards and what is in them.

        Args:
          path: a .tar file, a folder of them, or a pattern: "*", "?", "{00..17}", "{a,b}".
          captions: fields; () takes every .txt, and keys of .json that are called as captions are.

        Raises:
          SourceError: if there is no shard, one is no tar file, or a field is in none of the first samples.
        """
        self.name, self._wanted = path, captions
        self._shards = find_shards(path)
        self._indices = [tar_index.load_index(shard) for shard in self._shards]
        self._ends = np.cumsum([len(index) for index in self._indices])
        if not len(self):
            raise SourceError(f"{path}: no sample in its {len(self._shards)} shards")
        if captions:
            there = self._first_fields()
            for field in captions:
                nearest(field, there, "caption field", path)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        shard, row = self._place(index)
        path, members = self._shards[shard], self._indices[shard].sample(row)
        id = self.id(index)
        if tar_index.UNSAFE in members:
            raise RecordError("unsafe", f"{id}: a link, a path out of the folder, or cut off; wanted plain files")
        captions = self._captions(path, members, id)
        if self._wanted:
            captions = {field: captions.get(field) for field in self._wanted}
        return Record(id, _image(path, members, id), captions)

    def id(self, index: int) -> str:
        shard, row = self._place(index)
        return f"{epath.Path(self._shards[shard]).name}:{self._indices[shard].key(row)}"

    def _place(self, index: int) -> tuple[int, int]:
        index = check_index(index, len(self), self.name)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _captions(self, path: str, members: dict[str, tuple[int, int]], id: str) -> dict[str, Any]:
        captions: dict[str, Any] = {}
        for field, (offset, size) in members.items():
            name = "caption" if field == "txt" else field.removesuffix(".txt")
            is_json = field == "json" or field.endswith(".json")
            if not (is_json or field == "txt" or field.endswith(".txt")):
                continue
            if size > MAX_TEXT_BYTES:
                raise RecordError("large", f"{id}: {size} bytes of text, wanted at most {MAX_TEXT_BYTES}")
            data = read_range(path, offset, size)
            if is_json:
                captions |= self._of_json(data, id)
            else:
                captions[name] = data
        return captions

    def _of_json(self, data: bytes, id: str) -> dict[str, Any]:
        try:
            value = json.loads(data.decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise RecordError("json", f"{id}: not JSON ({error})") from None
        if not isinstance(value, dict):
            raise RecordError("json", f"{id}: a JSON {type(value).__name__}, wanted an object")
        if self._wanted:
            return {key: value[key] for key in self._wanted if key in value}
        return {key: text for key, text in value.items() if looks_like_caption(key)}

    def _first_fields(self) -> list[str]:
        """Every caption field of the first samples, whether wanted or not."""
        there: dict[str, None] = {}
        for index in range(min(len(self), _SAMPLED)):
            shard, row = self._place(index)
            for field, (offset, size) in self._indices[shard].sample(row).items():
                if field.endswith("json") and size <= MAX_TEXT_BYTES:
                    try:
                        value = json.loads(read_range(self._shards[shard], offset, size))
                    except (ValueError, RecursionError):
                        continue
                    there |= dict.fromkeys(value if isinstance(value, dict) else ())
                elif field.endswith("txt"):
                    there["caption" if field == "txt" else field.removesuffix(".txt")] = None
        return list(there)


def _image(path: str, members: dict[str, tuple[int, int]], id: str) -> bytes | None:
    for field, (offset, size) in members.items():
        if f".{field}".endswith(SUFFIXES):
            if size > MAX_IMAGE_BYTES:
                raise ImageError("large", f"{id}: an image of {size} bytes, wanted at most {MAX_IMAGE_BYTES}")
            return read_range(path, offset, size)
    return None


def find_shards(path: str) -> list[str]:
    """Every shard that a file, folder or pattern names.

    Raises:
      SourceError: if one of a list in braces is missing, or there is none.
    """
    found: list[str] = []
    for part in expand_braces(path):
        if any(c in part for c in "*?["):
            found += _glob(part)
        elif epath.Path(part).is_dir():
            found += _glob(os.path.join(part, "*.tar"))
        elif epath.Path(part).exists():
            found.append(part)
        else:
            raise SourceError(f"{part}: no such shard, wanted by {path}")
    if not found:
        raise SourceError(f"{path}: no .tar file there")
    return found


def _glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return sorted(glob.glob(os.path.expanduser(pattern)))
    folder, _, last = pattern.rpartition("/")
    return sorted(os.fspath(path) for path in epath.Path(folder).glob(last))


def expand_braces(pattern: str) -> list[str]:
    """ "{00..02}" -> 00, 01, 02; "{a,b}" -> a, b; several of them -> every combination, in order."""
    parts = [_choices(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(part: str) -> list[str]:
    if not part.startswith("{"):
        return [part]
    inside = part[1:-1]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inside)
    if numbers is None:
        return inside.split(",")
    first, last = numbers.groups()
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
