"""Rows of Parquet and Arrow files by number, through pyarrow alone."""

import bisect
import collections
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from etils import epath

from uae_jax.data.sources.base import SourceError, is_remote, need

CACHE_BYTES = 512 << 20  # of decoded row groups that a process keeps


class ParquetRows:
    """Rows of one or more Parquet files of the same columns.

    Parquet is read by row groups. The last ones are kept, up to `CACHE_BYTES`: a file with images in it that is larger
    than that is slow to read in shuffled order. `write_array_record` makes one that is not.
    """

    def __init__(self, paths: list[str], columns: list[str] | None = None):
        """Reads the files' footers.

        Args:
          paths: of the files, in order.
          columns: that are read at all; None reads all.
        """
        self.paths, self.wanted = paths, columns
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._ends: list[int] = []
        count = 0
        for number, path in enumerate(paths):
            with _parquet(path) as file:
                self.columns = list(file.schema_arrow.names)
                for group in range(file.metadata.num_row_groups):
                    count += file.metadata.row_group(group).num_rows
                    self._groups.append((number, group))
                    self._ends.append(count)
        self._open_cache()

    def _open_cache(self) -> None:
        self._lock = threading.Lock()
        self._cache: collections.OrderedDict[int, Any] = collections.OrderedDict()

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_cache")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._open_cache()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        group = bisect.bisect_right(self._ends, index)
        start = self._ends[group - 1] if group else 0
        return self._read(group).slice(index - start, 1).to_pylist()[0]

    def id(self, index: int) -> str:
        group = bisect.bisect_right(self._ends, index)
        file = self._groups[group][0]
        first = next(end for end, (other, _) in zip([0, *self._ends], self._groups, strict=False) if other == file)
        return f"{epath.Path(self.paths[file]).name}:{index - first}"

    def _read(self, group: int) -> Any:
        with self._lock:
            if group in self._cache:
                self._cache.move_to_end(group)
                return self._cache[group]
            number, part = self._groups[group]
            with _parquet(self.paths[number]) as file:
                table = file.read_row_group(part, columns=self.wanted)
            self._cache[group] = table
            while len(self._cache) > 1 and sum(t.nbytes for t in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
            return table


@contextlib.contextmanager
def _parquet(path: str) -> Iterator[Any]:
    """Opens a file; what is wrong with it is a `SourceError` that names it, which pyarrow does not."""
    parquet = need("pyarrow.parquet", "pyarrow", "a Parquet file")
    try:
        with parquet.ParquetFile(epath.Path(path).open("rb") if is_remote(path) else path) as file:
            yield file
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's errors are either
        raise SourceError(f"{path}: broken Parquet file ({' '.join(str(error).split())}); fetch it again") from None


class ArrowRows:
    """Rows of Arrow stream files, as `datasets` saves them; mapped into memory, not read."""

    def __init__(self, paths: list[str]):
        """Maps the files; each process that holds a copy maps them anew."""
        self.paths = paths
        self._tables: list[Any] | None = None
        tables = self._open()
        self.columns = list(tables[0].column_names)
        self._ends: list[int] = []
        for table in tables:
            self._ends.append(table.num_rows + (self._ends[-1] if self._ends else 0))

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_tables": None}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, row = self._place(index)
        return self._open()[file].slice(row, 1).to_pylist()[0]

    def id(self, index: int) -> str:
        file, row = self._place(index)
        return f"{epath.Path(self.paths[file]).name}:{row}"

    def _place(self, index: int) -> tuple[int, int]:
        file = bisect.bisect_right(self._ends, index)
        return file, index - (self._ends[file - 1] if file else 0)

    def _open(self) -> list[Any]:
        if self._tables is None:
            arrow = need("pyarrow", "pyarrow", "a datasets folder")
            self._tables = [arrow.ipc.open_stream(arrow.memory_map(path)).read_all() for path in self.paths]
        return self._tables
