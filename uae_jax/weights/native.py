"""The native format: a JSON manifest beside Orbax arrays, in the shapes of the parameter tree.

    folder/native.json   {"format": 1, "architecture": "...", "config": {...}}
    folder/params/       Orbax
    folder/files/        tokenizer, processor

A published checkpoint is read once, transposed and stacked, and written thus by `uae convert`; from then on every
device reads its own shards and nothing is rearranged.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import Mesh, SingleDeviceSharding

from uae_jax import plain
from uae_jax.parallel import sharding
from uae_jax.weights import checkpoint, registry, shapes_only
from uae_jax.weights.architecture import Architecture, Pretrained
from uae_jax.weights.checkpoint import NATIVE
from uae_jax.weights.errors import WeightsError, gathered
from uae_jax.weights.transfer import Progress, target_dtype

FORMAT = 1
_PARAMS = "params"
FILES = "files"


def save_native(
    model: Pretrained, folder: str | os.PathLike, *, force: bool = False, files: Mapping[str, bytes] = {}
) -> None:
    """Writes a model in the native format; the folder appears complete or not at all.

    Args:
      model: what is written.
      folder: that appears.
      force: see `checkpoint.NewFolder`.
      files: what belongs to it beside weights, by name.

    Raises:
      FileExistsError: see `checkpoint.NewFolder`.
      RuntimeError: in a run of several processes, which would each write a folder of their own.
    """
    if jax.process_count() > 1:
        raise RuntimeError("save_native writes from one process; convert on one host, then load_native anywhere")
    manifest = {
        "format": FORMAT,
        "architecture": model.architecture.name,
        "config": dataclasses.asdict(model.config),
    }
    with checkpoint.NewFolder(folder, force=force) as temporary:
        checkpoint.write_json(temporary / NATIVE, manifest)
        checkpoint.write_files(temporary / FILES, files)
        with _checkpointer() as checkpointer:
            checkpointer.save(temporary / _PARAMS, model.params)


def load_native(
    folder: str | os.PathLike,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
    progress: Progress | None = None,
) -> Pretrained:
    """Loads a folder that `save_native` wrote, each device reading its own shards.

    Args:
      folder: the local folder.
      dtype: of the parameters; None keeps the stored ones.
      mesh: any, whatever mesh it was saved from; None puts all on the default device.
      rules: logical axis -> mesh axes; defaults to `sharding.DEFAULT_RULES`.
      progress: called once, with the bytes read.

    Raises:
      WeightsError: if it is no native folder, or does not hold what its config says.
    """
    folder = Path(folder).expanduser().absolute()
    architecture, config = read_manifest(folder)
    abstract = architecture.abstract(config)
    path = folder / _PARAMS
    with _checkpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata.tree
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise WeightsError(f"{path}: no Orbax checkpoint ({_first_line(error)}); convert it again") from None
        wanted = _targets(stored, abstract, dtype, str(path))
        if shapes_only.active():
            return Pretrained(architecture, config, shapes_only.zeros(wanted))
        if mesh is None:
            device = jax.config.jax_default_device or jax.devices()[0]
            placed = jax.tree.map(lambda _: SingleDeviceSharding(device), wanted)
        else:
            placed = sharding.shardings(wanted, architecture.logical_axes.tree(wanted), mesh, rules)
        wanted = jax.tree.map(
            lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), wanted, placed
        )
        try:
            params = checkpointer.restore(path, wanted)
        except Exception as error:
            raise WeightsError(f"{path}: damaged ({_first_line(error)}); convert it again") from None
    if progress is not None:
        progress(sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    return Pretrained(architecture, config, params)


def _checkpointer() -> ocp.Checkpointer:
    # Not the asynchronous one: when that fails, its thread goes on to make folders behind our back.
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def read_manifest(folder: Path) -> tuple[Architecture, Any]:
    """What model a native folder holds, and its sizes; raises `WeightsError` where it does not say."""
    path = folder / NATIVE
    if not path.exists():
        if (folder / "config.json").exists():
            raise WeightsError(f"{folder}: is in a published layout; use load_pretrained, or `uae convert` it first")
        raise WeightsError(f"{folder}: no {NATIVE} in it, wanted a folder that `uae convert` wrote")
    manifest = checkpoint.read_json(path)
    if manifest.get("format") != FORMAT:
        raise WeightsError(f"{path}: format is {manifest.get('format')!r}, wanted {FORMAT}; convert it again")
    if not isinstance(name := manifest.get("architecture"), str):
        raise WeightsError(f"{path}: architecture is {name!r}, wanted its name")
    architecture = registry.find(name, str(path))
    return architecture, config_from_plain(architecture.config_class, manifest.get("config"), f"{path}: config")


def _targets(stored: Any, abstract: Any, dtype: Any, source: str) -> Any:
    """The tree to restore: wanted shapes, in the stored dtypes or the wanted one."""
    got = traverse_util.flatten_dict(stored, sep="/")
    want = traverse_util.flatten_dict(abstract, sep="/")
    problems = [f"missing: {path} {list(want[path].shape)}" for path in want if path not in got]
    problems += [f"unexpected: {path} {list(got[path].shape)}" for path in got if path not in want]
    problems += [
        f"shape: {path}: got {list(got[path].shape)}, wanted {list(want[path].shape)}"
        for path in want
        if path in got and tuple(got[path].shape) != tuple(want[path].shape)
    ]
    if problems:
        raise gathered(source, problems)
    flat = {
        path: jax.ShapeDtypeStruct(leaf.shape, target_dtype([np.dtype(got[path].dtype)], dtype))
        for path, leaf in want.items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def config_from_plain(kind: type, value: Any, where: str) -> Any:
    """`plain.from_plain` for what stands in a checkpoint: raises `WeightsError` for whatever is wrong with it."""
    try:
        return plain.from_plain(kind, value, where)
    except plain.ConfigError as error:
        raise WeightsError(str(error)) from None
