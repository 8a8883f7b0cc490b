"""Tables of images, or their paths, and captions: JSON lines, CSV, Parquet; and any other rows."""

from typing import Any

from etils import epath

from uae_jax.data.config import SourceConfig
from uae_jax.data.records import Record
from uae_jax.data.sources.base import SourceError, caption_columns, check_index, nearest, stored_image
from uae_jax.data.sources.rows import CsvRows, JsonRows, Rows

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


class RowSource:
    """Records out of rows: one column holds images or their paths, others hold captions, one or a list each.

    Attributes:
      columns: all there are.
      captions: those of them that hold captions.
    """

    def __init__(self, name: str, rows: Rows, folder: epath.Path, config: SourceConfig):
        """Checks that the columns are there.

        Args:
          name: of the source, in messages.
          rows: the table.
          folder: that paths of images are relative to.
          config: `image` "" leaves images out.

        Raises:
          SourceError: on an unknown column, naming the nearest and all there are, or an empty table.
        """
        self.name, self.columns, self._rows, self._folder = name, rows.columns, rows, folder
        if not len(rows):
            raise SourceError(f"{name}: no row in it, wanted at least one")
        self._image = config.image and nearest(config.image, rows.columns, "image column", name)
        self.captions = tuple(
            field for field in caption_columns(rows.columns, config.captions, name) if field != self._image
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        index = check_index(index, len(self), self.name)
        row = self._rows[index]
        image = stored_image(row.get(self._image), self._folder) if self._image else None
        return Record(self.id(index), image, {field: row.get(field) for field in self.captions})

    def id(self, index: int) -> str:
        return self._rows.id(index)


def open_table(config: SourceConfig) -> RowSource:
    """Opens a table by its suffix."""
    path = epath.Path(config.path)
    if path.suffix.lower() == ".parquet":
        rows: Any = open_parquet([config.path], config)
    elif path.suffix.lower() in (".csv", ".tsv"):
        rows = CsvRows(config.path)
    else:
        rows = JsonRows(config.path)
    return RowSource(config.path, rows, path.parent, config)


def open_parquet(paths: list[str], config: SourceConfig) -> Any:
    """Opens Parquet files such that only the columns of the settings are read."""
    from uae_jax.data.sources.columnar import ParquetRows

    rows = ParquetRows(paths)
    used = [*caption_columns(rows.columns, config.captions, config.path), config.image]
    rows.wanted = [column for column in rows.columns if column in used]
    return rows
