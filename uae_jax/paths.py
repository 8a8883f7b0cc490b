"""Folders on this machine's disks and in buckets, "gs://bucket/folder": one way to name, write and fetch them.

A bucket has no folders, only objects with slashes in their names. Each appears whole or not at all, but none can be
renamed, so a folder cannot appear as a whole. There it has an object "unfinished" in it until all the others are there.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

LIBRARIES = ("gcsfs", "tensorflow")  # one of them reads and writes buckets for epath
UNFINISHED = "unfinished"
_COPIES = 4  # at a time; large models lie in shards of 5 GB
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{2,}(/|$)")
_COLLAPSED = re.compile(r"[a-z][a-z0-9]+:/[^/]")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is another machine's, as "gs://bucket/folder" is."""
    return "://" in os.fspath(path)


def as_path(path: str | os.PathLike) -> Path:
    """A path that can be worked with: pathlib's where it is local, epath's (of the same methods) in a bucket.

    Nothing is looked up, so this costs nothing and comes first.

    Raises:
      ValueError: if it is remote in a way that is not known, lost a slash on the way (`Path("gs://b/x")` is a local
        "gs:/b/x"), or the library for it is not installed.
    """
    text = os.fspath(path)
    if not is_remote(text):
        if _COLLAPSED.match(text):
            raise ValueError(f"{text}: looks like a bucket's, wanted two slashes: {text.replace(':/', '://', 1)}")
        return Path(text).expanduser()
    if not _BUCKET.match(text):
        raise ValueError(f"{text}: is not known, wanted a local folder or gs://BUCKET/FOLDER")
    if not any(importlib.util.find_spec(name) for name in LIBRARIES):
        raise ValueError(f"{text}: {LIBRARIES[0]} is not installed, which buckets need; pip install 'uae_jax[gcs]'")
    _forget_listings()
    return epath.Path(text)


def write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes a file, text as UTF-8; at every moment there is the old one or the new one.

    Args:
      path: its folder must be there, if it is local.
      data: all that is to be in it.

    Raises:
      OSError: if it cannot be written; also where a bucket's library puts it otherwise.
    """
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        with os_errors(path):
            epath.Path(path).write_bytes(data)
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            temporary.write_bytes(data)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_whole(folder: Path) -> bool:
    """Whether a folder is there and complete, where it was renamed into place or written by `upload`."""
    return folder.is_dir() and not (is_remote(folder) and (folder / UNFINISHED).exists())


def upload(source: Path, target: Path) -> None:
    """Makes a bucket's folder hold what a local one does, and nothing else; see `is_whole`.

    Raises:
      OSError: if it cannot; then it may be half written.
    """
    with os_errors(target):
        files = {file.relative_to(source).as_posix(): file for file in source.rglob("*") if file.is_file()}
        old = _files(target)
        (target / UNFINISHED).write_text("")
        for name in sorted(old.keys() - files.keys() - {UNFINISHED}):
            old[name].unlink()
        _copy((epath.Path(file), target / name) for name, file in files.items())
        (target / UNFINISHED).unlink()


def fetch(folder: str | os.PathLike) -> Path:
    """Copies a bucket's folder to this machine's cache, unless it is there as it is in the bucket.

    The cache is `~/.cache/uae_jax/buckets`, or in `$XDG_CACHE_HOME`; what nothing uses may be deleted from it.

    Returns:
      the copy; it must not be changed.

    Raises:
      FileNotFoundError: if there is no such folder.
      OSError: if it is unfinished, or cannot be read.
      ValueError: see `as_path`.
    """
    folder = as_path(folder)
    with os_errors(folder):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder")
        if not is_whole(folder):
            raise OSError(f"{folder}: is being written, or was left half written; finish the run that writes it")
        files = _files(folder)
        stats = {name: file.stat() for name, file in files.items()}
        content = [str(folder), *((name, stats[name].length, stats[name].mtime) for name in sorted(stats))]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "uae_jax" / "buckets"
        place = cache / hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16] / folder.name
        place.parent.mkdir(parents=True, exist_ok=True)
        with (place.parent / ".lock").open("w") as lock:  # of several processes on a machine one copies
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not place.is_dir():
                part = place.with_name(".part")
                shutil.rmtree(part, ignore_errors=True)  # of a killed process
                for name in files:
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                _copy((file, epath.Path(part / name)) for name, file in files.items())
                part.rename(place)
        return place


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like `os.walk` from the top, also in buckets: folders taken out of the list are not gone into.

    Raises:
      whatever a bucket's library does where it cannot list a folder, see `os_errors`.
    """
    if not is_remote(folder):
        yield from ((Path(root), folders, files) for root, folders, files in os.walk(folder))
        return
    if not folder.is_dir():
        return
    # One listing for each folder, whatever is in it. Further down gcsfs would pass over what it cannot list, and it
    # names folders without "gs://"; a folder's own marker has no name.
    _, folders, files = next(folder.walk(on_error=_raise))
    folders.sort()
    yield folder, folders, sorted(filter(None, files))
    for name in folders:
        yield from walk(folder / name)


def _raise(error: Exception) -> None:
    raise error


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has an `OSError` that names no file name this one: where a disk is full, the system says no more than that."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def os_errors(path: str | os.PathLike) -> Iterator[None]:
    """Lets whatever goes wrong with a bucket be an `OSError` that names the path: its libraries raise many kinds."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and (not is_remote(path) or os.fspath(path) in str(error)):
            raise
        lines = str(error).strip().splitlines() or [""]
        raise OSError(f"{path}: {type(error).__name__}: {lines[0]}") from error


def _files(folder: Path) -> dict[str, Path]:
    """All files below a bucket's folder by their relative names."""
    return {
        (root / name).relative_to(folder).as_posix(): root / name for root, _, names in walk(folder) for name in names
    }


def _copy(pairs: Iterable[tuple[epath.Path, epath.Path]]) -> None:
    with ThreadPoolExecutor(_COPIES) as pool:
        for _ in pool.map(lambda pair: pair[0].copy(pair[1], overwrite=True), list(pairs)):
            pass


def _forget_listings() -> None:
    """Has gcsfs ask the bucket each time: what other processes and TensorStore write is not in its memory."""
    try:
        from fsspec import config
    except ImportError:  # TensorFlow serves, and remembers nothing
        return
    for name in ("gs", "gcs"):
        config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
