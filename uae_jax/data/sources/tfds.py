"""Prepared tensorflow-datasets, by random access and without TensorFlow.

A data set is prepared once, `tfds.builder(name, file_format="array_record").download_and_prepare()`, and is then read
by name or by the folder it lies in.
"""

import os
from typing import Any

from etils import epath

from uae_jax.data.config import SourceConfig
from uae_jax.data.sources.base import SourceError, nearest, need
from uae_jax.data.sources.table import RowSource

_PREPARE = 'tfds.builder(NAME, file_format="array_record").download_and_prepare()'


class TfdsRows:
    """Rows of one split; images stay encoded."""

    def __init__(self, builder: Any, split: str, image: str):
        """Opens the split.

        Raises:
          SourceError: if there is no such split or image feature, or it is not stored for random access.
        """
        tfds = _library()
        name = builder.info.full_name
        nearest(split.split("[")[0], list(builder.info.splits) or [], "split", name)
        self.columns = [column for key, feature in builder.info.features.items() for column in _columns(key, feature)]
        decoders = {nearest(image, self.columns, "image feature", name): tfds.decode.SkipDecoding()} if image else None
        try:
            self._data = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError as error:  # not in array_record
            raise SourceError(f"{name}: {' '.join(str(error).split())}; prepare it with {_PREPARE}") from None
        self._id = f"{name}/{split}"

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._data[index]
        return {column: _value(row, column.split("/")) for column in self.columns}

    def id(self, index: int) -> str:
        return f"{self._id}:{index}"


def _columns(key: str, feature: Any) -> list[str]:
    """A feature's name; of features inside features, or of a sequence of them, "outer/inner"."""
    inner = getattr(feature, "feature", feature)
    return [f"{key}/{name}" for name in inner] if hasattr(inner, "keys") else [key]


def _value(value: Any, keys: list[str]) -> Any:
    """What lies under keys, of each item where there are several."""
    if not keys:
        return value
    if isinstance(value, list | tuple):
        return [_value(item, keys) for item in value]
    return _value(value[keys[0]], keys[1:])


def is_prepared(folder: epath.Path) -> bool:
    """Whether a folder holds a prepared version of a data set."""
    return (folder / "features.json").exists() and (folder / "dataset_info.json").exists()


def open_tfds(config: SourceConfig) -> RowSource:
    """Opens NAME[/CONFIG][:VERSION][/SPLIT], or the folder of a prepared version, whose split the settings name."""
    folder = epath.Path(config.path)
    if is_prepared(folder):
        builder, split = _library().builder_from_directory(os.fspath(folder)), config.split
    else:
        name, split = _split_name(config.path.removeprefix("tfds:"))
        builder, split = _find(name), split or config.split
    return RowSource(config.path, TfdsRows(builder, split, config.image), folder, config)


def _library() -> Any:
    return need("tensorflow_datasets", "tensorflow-datasets", "a tensorflow-datasets builder")


def _split_name(path: str) -> tuple[str, str]:
    """Cuts a split off: what follows the version, or the configuration of a data set that has none of that name."""
    head, slash, last = path.rpartition("/")
    if not slash:
        return path, ""
    if ":" in head or "/" in head:
        return head, last
    if ":" in last:  # NAME/CONFIG:VERSION
        return path, ""
    try:
        configs = _library().builder_cls(head).builder_configs
    except Exception:  # a name that is only known from its folder
        configs = {}
    return (path, "") if last in configs else (head, last)


def _find(name: str) -> Any:
    try:
        builder = _library().builder(name)
    except Exception as error:  # many kinds, all of which mean that there is none
        reason = " ".join(str(error).split()).partition(" Available datasets")[0][:300]
        raise SourceError(f"tfds:{name}: no such data set ({reason})") from None
    if not builder.info.splits:
        raise SourceError(f"tfds:{name}: not prepared in {builder.data_dir}; prepare it with {_PREPARE}")
    return builder
