"""What tells that the files in a folder are others than they were, without reading all of what is large."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from uae_jax.weights import checkpoint, uae

WHOLE = 16 * 2**20  # bytes up to which a file counts by its content; a larger one by its size and date


def of_model(name_or_path: str | os.PathLike) -> str:
    """Where a UAE checkpoint lies, and a digest of what is painted with: all of it but its scorers.

    Raises:
      WeightsError: if there is none.
    """
    root = checkpoint.resolve(name_or_path)
    return of_files(root, (file for part in uae.CONTENT for file in [root / part, *(root / part).rglob("*")]))


def of_processor(name_or_path: str | os.PathLike) -> str:
    """The same of the folder of a base model, of which tokenizer and settings count.

    Raises:
      WeightsError: if there is none.
    """
    root = checkpoint.resolve(name_or_path)
    return of_files(root, (file for file in root.glob("*") if file.suffix in uae.TEXT_SUFFIXES))


def of_files(root: Path, files: Iterable[Path]) -> str:
    """Where a folder lies, and a digest of some of what is in it: names and content."""
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file.is_file()):
        known = file.stat()
        content = file.read_bytes() if known.st_size <= WHOLE else str((known.st_size, known.st_mtime_ns)).encode()
        digest.update(
            f"{file.relative_to(root)}\0{hashlib.sha256(content).hexdigest()}\n".encode(errors="surrogateescape")
        )
    return f"{root.resolve()} ({digest.hexdigest()[:16]})"
