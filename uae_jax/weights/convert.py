"""`uae convert` and `uae export`: published checkpoint -> native and back, whatever it holds."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uae_jax import paths
from uae_jax.weights import checkpoint, clip, native, pretrained, uae
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.progress import reading_bar


def convert(src: str, dst: str | os.PathLike, *, subfolder: str = "", dtype: Any = None, force: bool = False) -> str:
    """Reads a published checkpoint and writes it in the native format.

    Args:
      src: a folder or Hugging Face name of one model or of a UAE checkpoint, or a CLIP file in OpenAI's key layout.
      dst: the native folder.
      subfolder: folder inside `src`.
      dtype: of the base parameters; None keeps the files'.
      force: replace a checkpoint at `dst`.

    Returns:
      One line that says what was written.

    Raises:
      WeightsError: if `src` cannot be read, or is native already.
      FileExistsError: see `checkpoint.NewFolder`, or if `src` lies in `dst`; before anything is read.
    """
    checkpoint.NewFolder(dst, force=force).check()
    root = checkpoint.resolve(src, subfolder=subfolder) / subfolder
    _check_apart(root, dst)
    if (root / checkpoint.NATIVE).is_file() or (root / checkpoint.UAE_NATIVE).is_file():
        raise WeightsError(f"{root}: is native already; load it as it is, or `uae export` it")
    with reading_bar(root) as progress:
        if root.is_dir() and uae.is_published(root):
            weights = uae.load(root, dtype=dtype, progress=progress)
            uae.save_native(weights, dst, force=force)
            return f"{dst}: {_describe_uae(weights)}"
        if root.is_file():
            config, tensors = clip.open_openai_clip(root)
            model = pretrained.from_tensors(
                clip.MODEL, config, tensors, source=str(root), dtype=dtype, progress=progress
            )
        else:
            model = pretrained.load_pretrained(root, dtype=dtype, progress=progress)
    native.save_native(model, dst, force=force, files=pretrained.read_files(root) if root.is_dir() else {})
    return f"{dst}: {_describe(model)}"


def export(
    src: str | os.PathLike, dst: str | os.PathLike, *, max_shard_bytes: int = 5_000_000_000, force: bool = False
) -> str:
    """Reads a native folder and writes it in the published layout.

    Args:
      src: a folder that `convert` wrote.
      dst: the published folder.
      max_shard_bytes: of one safetensors file.
      force: replace a checkpoint at `dst`.

    Returns:
      One line that says what was written.

    Raises:
      WeightsError: if `src` is not native.
      FileExistsError: see `checkpoint.NewFolder`, or if `src` lies in `dst`; before anything is read.
    """
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}, wanted a positive number")
    checkpoint.NewFolder(dst, force=force).check()
    root = paths.fetch(src) if paths.is_remote(src) else Path(src).expanduser()
    _check_apart(root, dst)
    if (root / checkpoint.UAE_NATIVE).is_file():
        weights = uae.load(root)
        uae.save_published(weights, dst, force=force, max_shard_bytes=max_shard_bytes)
        return f"{dst}: {_describe_uae(weights)}"
    model = native.load_native(root)
    files = pretrained.read_files(root)
    pretrained.save_pretrained(model, dst, force=force, max_shard_bytes=max_shard_bytes, files=files)
    return f"{dst}: {_describe(model)}"


def _check_apart(src: Path, dst: str | os.PathLike) -> None:
    """Raises `FileExistsError` where writing one folder would replace what is read, or what it is a part of."""
    if not paths.is_remote(dst) and src.resolve().is_relative_to(Path(dst).expanduser().resolve()):
        raise FileExistsError(f"{dst}: would replace {src}, which is to be read; choose another folder")


def _describe(model: Pretrained) -> str:
    dtypes = sorted({str(np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(model.params)})
    count = pretrained.parameter_count(model.params)
    return f"{model.architecture.name}, {count:,} parameters in {' and '.join(dtypes)}"


def _describe_uae(weights: uae.UAEWeights) -> str:
    parts = ("encoder", "projector", "decoder", "vae", "text_encoder", "text_encoder_2")
    shown = [_describe(getattr(weights, part)) for part in parts]
    for part in ("encoder", "decoder"):
        adapter = getattr(weights, f"{part}_lora")
        if adapter is not None:
            shown.append(f"{part} LoRA of rank {adapter.config.rank}, alpha {adapter.config.alpha:g}")
    return "; ".join(shown)
