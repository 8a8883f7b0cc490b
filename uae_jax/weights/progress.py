"""A progress bar for whoever waits while a checkpoint is read."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import tqdm

from uae_jax.weights import checkpoint
from uae_jax.weights.transfer import Progress


@contextlib.contextmanager
def reading_bar(root: Path) -> Iterator[Progress]:
    """Shows bytes read, rate and time left on stderr; yields what loading is to call.

    Args:
      root: a published folder or file. Of a native one the bytes are not known beforehand, so no time left is shown.
    """
    native = any((root / name).is_file() for name in (checkpoint.NATIVE, checkpoint.UAE_NATIVE))
    files = [root] if root.is_file() else [] if native else root.rglob("*.safetensors")
    total = sum(file.stat().st_size for file in files) or None
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc="reading", file=sys.stderr, leave=False) as bar:
        yield bar.update
