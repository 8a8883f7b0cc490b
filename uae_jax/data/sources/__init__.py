"""Where records come from: folders, tables, tar shards, ArrayRecord files, data sets, the scene world."""

import dataclasses
import os

from etils import epath

from uae_jax import paths
from uae_jax.data.config import MISSING, SourceConfig
from uae_jax.data.records import Source
from uae_jax.data.sources.base import SourceError

__all__ = ["SourceError", "detect_kind", "open_source"]

_TABLES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_ARRAY_RECORDS = (".array_record", ".arrayrecord")


def open_source(config: SourceConfig) -> Source:
    """Opens what a `SourceConfig` names; images and captions are not looked at yet.

    Raises:
      SourceError: if there is nothing, or something else, or a named column is missing; says what helps.
    """
    if config.path == MISSING:
        raise SourceError(
            "no data is named: data=... is needed, as in --config configs/pretrain.py:size=full,data=photos"
        )
    if config.path.startswith("gs:"):
        try:
            paths.as_path(config.path)
        except ValueError as error:  # misspelt, or the library for buckets is not installed
            raise SourceError(str(error)) from None
    kind = detect_kind(config.path) if config.kind == "auto" else config.kind
    if config.path and "://" not in config.path:
        config = dataclasses.replace(config, path=os.path.expanduser(config.path))
    try:
        return _OPENERS[kind](config)
    except KeyError:
        raise SourceError(f"kind is {kind!r}, wanted one of auto, {', '.join(_OPENERS)}") from None
    except FileNotFoundError:
        raise SourceError(f"{config.path}: nothing there") from None
    except OSError as error:
        raise SourceError(f"{config.path}: {error.strerror or error}") from None


def detect_kind(path: str) -> str:
    """Tells the kind of a source from its name and a look at what is there.

    Raises:
      SourceError: if there is nothing, or a file of no known kind.
    """
    if path in ("", "scenes"):
        return "scenes"
    if path.startswith("tfds:"):
        return "tfds"
    suffix = os.path.splitext(path)[1].lower()
    if any(c in path for c in "*?{") and suffix in (*_TABLES, *_ARRAY_RECORDS):
        raise SourceError(
            f"{path}: only .tar shards go by a pattern; give each file as a source, or join them into one"
        )
    if suffix == ".tar" or any(c in path for c in "*?{"):
        return "webdataset"
    place = epath.Path(path).expanduser()
    if not place.exists():
        raise SourceError(f"{path}: nothing there; a data set goes by tfds:NAME/SPLIT, the scene world by 'scenes'")
    if place.is_dir():
        return _detect_folder(place)
    if suffix in _TABLES:
        return "table"
    if suffix in _ARRAY_RECORDS:
        return "arrayrecord"
    wanted = ", ".join([*_TABLES, *_ARRAY_RECORDS, ".tar"])
    raise SourceError(f"{path}: no kind of source has files ending in {suffix!r}, wanted a folder, or {wanted}")


def _detect_folder(folder: epath.Path) -> str:
    from uae_jax.data.sources import huggingface, tfds

    if tfds.is_prepared(folder):
        return "tfds"
    if huggingface.is_dataset(folder):
        return "huggingface"
    return "webdataset" if any(folder.glob("*.tar")) else "folder"


# Each opener imports its own kind only.


def _folder(config: SourceConfig) -> Source:
    from uae_jax.data.sources.folder import FolderSource

    return FolderSource(config.path, config.captions)


def _table(config: SourceConfig) -> Source:
    if os.path.isdir(config.path):
        raise SourceError(f'{config.path}: a folder, which kind "table" is not; wanted a file: {", ".join(_TABLES)}')
    from uae_jax.data.sources.table import open_table

    return open_table(config)


def _webdataset(config: SourceConfig) -> Source:
    from uae_jax.data.sources.webdataset import WebDatasetSource

    return WebDatasetSource(config.path, config.captions)


def _arrayrecord(config: SourceConfig) -> Source:
    from uae_jax.data.sources.arrayrecord import ArrayRecordSource

    return ArrayRecordSource(config.path, config.captions)


def _tfds(config: SourceConfig) -> Source:
    from uae_jax.data.sources.tfds import open_tfds

    return open_tfds(config)


def _huggingface(config: SourceConfig) -> Source:
    from uae_jax.data.sources.huggingface import open_huggingface

    return open_huggingface(config)


def _scenes(config: SourceConfig) -> Source:
    if config.path not in ("", "scenes"):
        raise SourceError(f'{config.path}: kind is "scenes", which reads no files; leave the kind at auto')
    from uae_jax.data.sources.scenes import ScenesSource

    return ScenesSource(config.scenes, config.captions)


_OPENERS = {
    "folder": _folder,
    "table": _table,
    "webdataset": _webdataset,
    "arrayrecord": _arrayrecord,
    "tfds": _tfds,
    "huggingface": _huggingface,
    "scenes": _scenes,
}
