"""Loads and saves one model in the published layout of transformers or diffusers.

`load_pretrained` reads the native format (`uae_jax.weights.native`) as well, so a caller need not know which it has.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax.parallel import sharding
from uae_jax.weights import checkpoint, native, registry, shapes_only, transfer
from uae_jax.weights.architecture import Architecture, Pretrained


def read_config(name_or_path: str | os.PathLike) -> tuple[Architecture, Any]:
    """What model a folder holds, and its sizes; no weights are looked at.

    Raises:
      WeightsError: if there is no such folder, or it does not say.
    """
    folder = checkpoint.resolve(name_or_path)
    return native.read_manifest(folder) if (folder / checkpoint.NATIVE).exists() else _read_config(folder)


def _read_config(folder: Path) -> tuple[Architecture, Any]:
    config_json = checkpoint.read_json(folder / "config.json")
    architecture = registry.find(registry.name_in(config_json, str(folder / "config.json")), str(folder))
    return architecture, architecture.config_from_json(config_json)


def read_files(name_or_path: str | os.PathLike) -> dict[str, bytes]:
    """What belongs to a model beside its config and weights (tokenizer, processor), by name."""
    folder = checkpoint.resolve(name_or_path)
    if (folder / checkpoint.NATIVE).exists():
        folder = folder / native.FILES
    return {file.name: file.read_bytes() for file in checkpoint.text_files(folder)}


def load_pretrained(
    name_or_path: str | os.PathLike,
    *,
    subfolder: str = "",
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
    progress: transfer.Progress | None = None,
) -> Pretrained:
    """Loads a folder with `config.json` and safetensors, as transformers or diffusers write it, or a native one.

    Args:
      name_or_path: local folder or Hugging Face repository name.
      subfolder: folder inside it.
      dtype: of the parameters; None keeps the file's.
      mesh: parameters land in their shards on it; None puts them on the default device.
      rules: logical axis -> mesh axes; defaults to `sharding.DEFAULT_RULES`.
      progress: called with the bytes read, after each tensor.

    Raises:
      WeightsError: if anything is missing, unexpected or of the wrong shape; before anything is allocated.
    """
    if not subfolder and (stand_in := shapes_only.instead_of(name_or_path, "model")) is not None:
        return stand_in
    folder = checkpoint.resolve(name_or_path, subfolder=subfolder) / subfolder
    if (folder / checkpoint.NATIVE).exists():
        return native.load_native(folder, dtype=dtype, mesh=mesh, rules=rules, progress=progress)
    architecture, config = _read_config(folder)
    tensors = architecture.canonical(checkpoint.open_checkpoint(folder), config)
    return from_tensors(
        architecture, config, tensors, source=str(folder), dtype=dtype, mesh=mesh, rules=rules, progress=progress
    )


def from_tensors(
    architecture: Architecture,
    config: Any,
    tensors: Any,
    *,
    source: str,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
    progress: transfer.Progress | None = None,
) -> Pretrained:
    """Loads a model whose tensors are already listed under the keys of its table; arguments as `load_pretrained`."""
    abstract = architecture.abstract(config)
    placed = None
    if mesh is not None:
        placed = sharding.shardings(abstract, architecture.logical_axes.tree(abstract), mesh, rules)
    params = transfer.load(
        architecture.table(config), tensors, abstract, source=source, dtype=dtype, shardings=placed, progress=progress
    )
    return Pretrained(architecture, config, params)


def save_pretrained(
    model: Pretrained,
    path: str | os.PathLike,
    *,
    force: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    files: Mapping[str, bytes] = {},
) -> None:
    """Writes a folder that transformers or diffusers load with no key missing and none unexpected.

    `files` go beside it by their names, see `read_files`.

    Raises:
      FileExistsError: if `path` exists and is not empty, unless `force`.
    """
    with checkpoint.NewFolder(path, force=force) as folder:
        checkpoint.write_files(folder, files)
        write_model(model, folder, max_shard_bytes=max_shard_bytes)


def write_model(model: Pretrained, folder: Path, *, dtype: Any = None, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes `config.json` and the weights into an existing folder; in another dtype than theirs unless it is None."""
    architecture = model.architecture
    table = architecture.table(model.config)
    checkpoint.write_json(folder / "config.json", architecture.config_to_json(model.config))
    checkpoint.write_checkpoint(
        folder,
        architecture.file_stem,
        transfer.published_shapes(table, model.params, dtype),
        transfer.to_published(table, model.params, dtype),
        max_shard_bytes=max_shard_bytes,
    )


def parameter_count(params: Any) -> int:
    """Numbers in a tree of arrays or `ShapeDtypeStruct`."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(params))
