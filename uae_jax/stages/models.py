"""Which model a stage starts from: a new one of a named size, or a folder."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from uae_jax.models.runtime import Runtime
from uae_jax.weights import checkpoint, errors, pretrained, shapes_only
from uae_jax.weights.architecture import Architecture, Pretrained
from uae_jax.weights.new import NEW, new_model

Sizes = Mapping[str, tuple[Architecture, Callable[[], Any]]]


@dataclasses.dataclass
class Start:
    """What a stage starts from.

    Attributes:
      model: sizes, and float32 parameters on the stage's mesh.
      folder: where it was read from, for what lies beside the weights; None for a new model.
    """

    model: Pretrained
    folder: Path | None


def check_name(name: str, sizes: Sizes) -> None:
    """Refuses a "new:SIZE" that there is none of; folders are looked at when they are opened.

    Raises:
      ValueError: names the nearest size and all others.
    """
    if not name:
        raise ValueError(f"model is empty, wanted a folder or one of {_listed(sizes)}")
    if name.startswith(NEW) and name.removeprefix(NEW) not in sizes:
        near = difflib.get_close_matches(name.removeprefix(NEW), sizes, n=1, cutoff=0.0)[0]
        raise ValueError(f"model is {name!r}, the nearest there is {NEW + near!r}; all: {_listed(sizes)}, or a folder")


def look_for(name: str) -> None:
    """Raises `WeightsError` where `open_start` will find no folder, or none with a model in it."""
    if not name.startswith(NEW):
        with errors.named("settings.model"):
            pretrained.read_config(name)


def open_start(name: str, sizes: Sizes, seed: int, mesh: Mesh) -> Start:
    """Initialises or loads a model in float32, straight into its shards.

    Args:
      name: "new:SIZE", or a folder or hub name as `load_pretrained` takes it.
      sizes: size -> (architecture, what makes its dataclass of sizes).
      seed: of a new model.
      mesh: where it goes.

    Raises:
      ValueError: on a size that is not in `sizes`, or a folder that holds none of their architectures.
      WeightsError: if a folder cannot be loaded.
    """
    check_name(name, sizes)
    if name.startswith(NEW):
        architecture, config = sizes[name.removeprefix(NEW)]
        return Start(new_model(architecture, config(), seed, mesh=mesh), None)
    model = pretrained.load_pretrained(name, dtype=jnp.float32, mesh=mesh)
    wanted = sorted({architecture.name for architecture, _ in sizes.values()})
    if model.architecture.name not in wanted:
        raise ValueError(f"{name}: holds a {model.architecture.name}, wanted one of {', '.join(wanted)}")
    there = not shapes_only.active() or shapes_only.is_there(name, "model")
    return Start(model, checkpoint.resolve(name) if there else None)


def runtime(dtype: str, remat: str = "none") -> Runtime:
    """How a trained model computes: float32 parameters, activations in `dtype`.

    Raises:
      ValueError: on another dtype than "float32" or "bfloat16", or an unknown `remat`.
    """
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, wanted 'float32' or 'bfloat16'")
    return Runtime(dtype=jnp.dtype(dtype), remat=remat)


def image_settings(folder: Path | None, default: str, side: int) -> dict:
    """The `preprocessor_config.json` that belongs to a scorer.

    Args:
      folder: whose file is taken as it is; None, or a folder without one, takes the embedded scorer's.
      default: name of that scorer, as "clip".
      side: of the square that images are then resized and cropped to.
    """
    if folder is not None and (folder / "preprocessor_config.json").is_file():
        return checkpoint.read_json(folder / "preprocessor_config.json")
    value = checkpoint.read_json(checkpoint.EMBEDDED / "tiny" / "scorers" / default / "preprocessor_config.json")
    whole = {"height": side, "width": side}
    if value.get("do_center_crop"):
        return value | {"size": {"shortest_edge": side}, "crop_size": whole}
    return value | {"size": whole}


def _listed(sizes: Sizes) -> str:
    return ", ".join(NEW + size for size in sizes)
