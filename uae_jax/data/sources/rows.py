"""Rows of JSON lines and CSV files by number, read from the file when they are asked for.

Only the byte at which each row begins is held in memory.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from etils import epath

from uae_jax.data.sources.base import MAX_TEXT_BYTES, SourceError, read_range
from uae_jax.data.validity import RecordError

_SAMPLED = 100  # rows whose keys are the columns of a JSON lines file


class Rows(Protocol):
    """A table by rows."""

    columns: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def id(self, index: int) -> str:
        """Names a row in messages."""
        ...


class JsonRows:
    """One JSON object a line. A line that is none is a bad record, not a bad file."""

    def __init__(self, path: str):
        """Finds where the lines begin.

        Raises:
          SourceError: if there is no object in the first lines.
        """
        self.path, self._name = path, epath.Path(path).name
        with epath.Path(path).open("rb") as file:
            spans = [(start, len(line), number) for start, line, number in _lines(file) if line.strip()]
        self._starts, self._sizes, self._numbers = np.array(spans, np.int64).reshape(-1, 3).T.copy()
        keys: dict[str, None] = {}
        for index in range(min(len(self), _SAMPLED)):
            try:
                keys |= dict.fromkeys(self[index])
            except RecordError:
                continue
        if not keys:
            raise SourceError(f"{path}: no JSON object in its first lines, wanted one a line")
        self.columns = list(keys)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._sizes[index] > MAX_TEXT_BYTES:
            raise RecordError("large", f"{self.id(index)}: a line of more than {MAX_TEXT_BYTES} bytes")
        text = read_range(self.path, int(self._starts[index]), int(self._sizes[index]))
        try:
            row = json.loads(text.decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise RecordError("json", f"{self.id(index)}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise RecordError("json", f"{self.id(index)}: a JSON {type(row).__name__}, wanted an object")
        return row

    def id(self, index: int) -> str:
        return f"{self._name}:{self._numbers[index]}"


class CsvRows:
    """Comma- or tab-separated values with a head line; quoted values may hold line breaks."""

    def __init__(self, path: str):
        """Finds where the rows begin.

        Raises:
          SourceError: if there is no head line, or a value has no end.
        """
        self.path, self._name = path, epath.Path(path).name
        self._delimiter = "\t" if self._name.lower().endswith(".tsv") else ","
        with epath.Path(path).open("rb") as file:
            spans = list(self._rows(file))
        if not spans:
            raise SourceError(f"{path}: empty, wanted a line of column names")
        starts, sizes, numbers = np.array(spans, np.int64).T.copy()
        head = self._parse(read_range(path, int(starts[0]), int(sizes[0])))
        self.columns = [name.removeprefix("\ufeff").strip() for name in head]
        self._starts, self._sizes, self._numbers = starts[1:], sizes[1:], numbers[1:]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        values = self._parse(read_range(self.path, int(self._starts[index]), int(self._sizes[index])))
        if len(values) != len(self.columns):
            raise RecordError("row", f"{self.id(index)}: {len(values)} values, wanted {len(self.columns)}")
        return dict(zip(self.columns, values, strict=True))

    def id(self, index: int) -> str:
        return f"{self._name}:{self._numbers[index]}"

    def _parse(self, data: bytes) -> list[str]:
        text = io.StringIO(data.decode("utf-8", "surrogateescape"), newline="\n")
        return next(csv.reader(text, delimiter=self._delimiter), [])

    def _rows(self, file) -> Iterator[tuple[int, int, int]]:
        """(first byte, bytes, line number) of each row that is not empty."""
        taken = [(0, 0)]  # (end, number) of the last line that the parser took

        def feed() -> Iterator[str]:
            for start, line, number in _lines(file):
                taken[0] = (start + len(line), number)
                yield line.decode("utf-8", "surrogateescape")

        end, number = 0, 0
        reader = csv.reader(feed(), delimiter=self._delimiter)
        try:
            for row in reader:
                start, first = end, number + 1
                end, number = taken[0]
                if row:
                    yield start, end - start, first
        except csv.Error as error:
            raise SourceError(
                f"{self.path}:{taken[0][1]}: {error}; is a quote left open? JSON lines have no such limit"
            ) from None


def _lines(file) -> Iterator[tuple[int, bytes, int]]:
    """(first byte, line, number from 1) of each line, broken at line feeds only."""
    start = 0
    for number, line in enumerate(file, start=1):
        yield start, line, number
        start += len(line)
