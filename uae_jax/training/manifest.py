"""The manifest of a checkpoint folder: every file's size and SHA-256, so that damage cannot pass unnoticed.

    manifest.json   {"format": 1, "step": 1000, "files": {"record.json": {"bytes": 217, "sha256": "9f..."}, ...},
                     "sha256": of all that in this very notation}

It is written last: a folder that has none was never finished.
"""

import errno
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from uae_jax import paths
from uae_jax.paths import UNFINISHED

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 1 << 20  # bytes; hashlib gives up the interpreter lock while it digests one
_READERS = 4


def is_local(path: epath.Path) -> bool:
    """Whether a path is on a file system that renames atomically and knows fsync; buckets ("gs://...") do not."""
    return not paths.is_remote(path)


def write(folder: epath.Path, step: int) -> None:
    """Hashes all that a folder holds and writes its manifest; on return all of it is on the disk.

    Raises:
      OSError: if something cannot be read or written.
    """
    files = _walk(folder)
    durable = is_local(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        entries = list(pool.map(lambda file: _entry(file, durable), files.values()))
    content = {"format": FORMAT, "step": step, "files": dict(zip(files, entries, strict=True))}
    (folder / MANIFEST).write_text(json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")
    if durable:
        sync(folder / MANIFEST)
        for path in {file.parent for file in files.values()} | {folder}:
            sync(path)


def problems(folder: epath.Path, step: int) -> list[str]:
    """Compares a folder with its manifest.

    Files that the manifest does not name are not looked at: nothing reads them.

    Returns:
      what is wrong, one line per file, each beginning with the file's name; empty for an intact checkpoint.

    Raises:
      OSError: if a file cannot be read for a reason that says nothing about its content, say a missing permission or
        an unreachable bucket.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return [f"{MANIFEST}: missing"]
    except ValueError as error:  # UnicodeDecodeError too
        return [f"{MANIFEST}: no JSON ({error})"]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return [f"{MANIFEST}: {error.strerror}"]
    if found := _manifest_problem(content, step):
        return [f"{MANIFEST}: {found}"]
    present = _walk(folder)
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda item: _file_problem(present.get(item[0]), item[1]), content["files"].items())
        return [f"{name}: {problem}" for name, problem in zip(content["files"], found, strict=True) if problem]


def sync(path: epath.Path) -> None:
    """Waits until a local file, or the names in a local folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_problem(content: Any, step: int) -> str | None:
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        return "not the manifest of a checkpoint"
    if content.pop("sha256", None) != _digest(content):
        return "changed after it was written (its own SHA-256 differs)"
    if content["format"] != FORMAT:
        return f"format is {content['format']!r}, wanted {FORMAT}"
    if content["step"] != step:
        return f"is of step {content['step']}, wanted {step}"
    return None


def _file_problem(file: epath.Path | None, wanted: dict[str, Any]) -> str | None:
    if file is None:
        return "missing"
    try:
        size = file.stat().length
        if size != wanted["bytes"]:
            return f"{size} bytes, wanted {wanted['bytes']}"
        if _entry(file)["sha256"] != wanted["sha256"]:
            return "content changed after it was written (its SHA-256 differs)"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{error.strerror}"
    return None


def _entry(file: epath.Path, durable: bool = False) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    if durable:
        sync(file)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _walk(folder: epath.Path, prefix: str = "") -> dict[str, epath.Path]:
    """All files below a folder by their relative names, but for what this module itself puts there."""
    files: dict[str, epath.Path] = {}
    for path in sorted(folder.iterdir()):
        name = prefix + path.name
        if path.is_dir():
            files |= _walk(path, f"{name}/")
        elif name not in (MANIFEST, UNFINISHED):
            files[name] = path
    return files
