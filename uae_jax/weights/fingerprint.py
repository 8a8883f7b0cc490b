"""What tells that a model is another than it was: its files, without reading all of what is large, or its numbers."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.weights import checkpoint, uae

WHOLE = 16 * 2**20  # bytes up to which a file counts by its content; a larger one by its size and date
_PIECE, _SAMPLES = 2**16, 64


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
    return of_files(root, (file for file in root.glob("*") if file.suffix in checkpoint.TEXT_SUFFIXES))


def of_content(name_or_path: str | os.PathLike) -> str:
    """A digest of a model's weights and settings that no copying changes, for a run that goes on elsewhere.

    Of a large file its size counts, and `_SAMPLES` pieces of it: training changes all of a matrix.

    Raises:
      WeightsError: if there is no such folder.
    """
    root, digest = checkpoint.resolve(name_or_path), hashlib.sha256()
    for file in sorted(file for file in root.rglob("*") if file.suffix in (".safetensors", *checkpoint.TEXT_SUFFIXES)):
        digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            for place in _places(file.stat().st_size):
                opened.seek(place)
                digest.update(opened.read(_PIECE))
    return digest.hexdigest()[:16]


def of_values(params: Any) -> str:
    """A digest of parameters by their numbers, whichever files, dtype that holds them, or mesh they come from.

    Of each leaf the sum of the bits of its numbers in float32, each times the odd number of its place, modulo 2^32:
    exact in any order, so that shards may be summed up where they lie.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    sums = {path: int(value) for path, value in _sums(leaves).items()}
    return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()[:16]


@jax.jit
def _sums(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def one(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return jax.tree.map(one, leaves)


def _places(size: int) -> Iterable[int]:
    """Where pieces of a file begin: one behind the other, or evenly spread from its first byte to its last."""
    if size <= WHOLE:
        return range(0, size, _PIECE)
    return [i * (size - _PIECE) // (_SAMPLES - 1) for i in range(_SAMPLES)]


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
