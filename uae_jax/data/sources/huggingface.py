"""Local folders of Hugging Face `datasets`: saved by `save_to_disk`, or holding Parquet files."""

import json
import re

from etils import epath

from uae_jax.data.config import SourceConfig
from uae_jax.data.sources.base import SourceError, is_remote, nearest
from uae_jax.data.sources.columnar import ArrowRows
from uae_jax.data.sources.table import RowSource, open_parquet

_SPLITS = "dataset_dict.json"
_STATE = "state.json"


def is_dataset(folder: epath.Path) -> bool:
    """Whether a folder is one that this file opens."""
    return any((folder / name).exists() for name in (_SPLITS, _STATE)) or bool(_parquet_files(folder))


def open_huggingface(config: SourceConfig) -> RowSource:
    """Opens one split.

    Raises:
      SourceError: if the folder is no dataset, or has no such split.
    """
    folder = epath.Path(config.path)
    name = config.path
    if (folder / _SPLITS).exists():
        splits = _json(folder / _SPLITS).get("splits", [])
        name = f"{name} ({config.split})"
        folder = folder / nearest(config.split, splits, "split", config.path)
    if (folder / _STATE).exists():
        return RowSource(name, ArrowRows(_arrow_files(folder)), folder, config)
    files = _parquet_files(folder)
    if not files:
        raise SourceError(f"{config.path}: neither {_STATE} nor .parquet files in it, wanted a datasets folder")
    return RowSource(name, open_parquet(_of_split(files, config), config), folder, config)


def _arrow_files(folder: epath.Path) -> list[str]:
    state = _json(folder / _STATE)
    names = [str(entry.get("filename", "")) for entry in state.get("_data_files") or []]
    if not names or state.get("_indices_data_files") or state.get("_indices_files"):
        raise SourceError(f"{folder}: {_STATE} names no data, or only part of it; save it again with `save_to_disk`")
    if is_remote(folder):
        raise SourceError(f"{folder}: Arrow files are mapped into memory, wanted a local folder; copy it")
    for name in names:
        if "/" in name or not (folder / name).exists():
            raise SourceError(f"{folder}: {_STATE} names {name!r}, which is not in the folder; copy it again")
    return [str(folder / name) for name in names]


def _parquet_files(folder: epath.Path) -> list[str]:
    found = [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]
    return sorted(str(path) for path in found)


def _of_split(files: list[str], config: SourceConfig) -> list[str]:
    """The files of one split, where their names tell ("train-00000-of-00002.parquet"); else all."""
    stems = [epath.Path(file).stem for file in files]
    splits = [match and match[1] for match in (re.match(r"(.+?)-\d+-of-\d+$", stem) for stem in stems)]
    if None in splits:
        return files
    nearest(config.split, sorted(set(splits)), "split", config.path)
    return [file for file, split in zip(files, splits, strict=True) if split == config.split]


def _json(path: epath.Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise SourceError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: a JSON {type(value).__name__}, wanted an object")
    return value
