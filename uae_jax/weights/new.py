"""Models that start from nothing."""

import difflib
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from uae_jax.models import clip
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.projector import ProjectorConfig
from uae_jax.models.qwen2_5_vl import config as qwen
from uae_jax.models.runtime import Runtime
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel import sharding
from uae_jax.weights import autoencoder_kl, projector, qwen2_5_vl, registry, sd3, shapes_only, transfer, uae
from uae_jax.weights.architecture import Architecture, Pretrained
from uae_jax.weights.uae import UAEWeights

NEW = "new:"
_TEXT = (registry.find("CLIPTextModelWithProjection"), clip.tiny_text_encoder)
_TEXTS = {"text_encoder": _TEXT, "text_encoder_2": _TEXT}
# Size -> part -> what it is, and what makes its sizes.
UAE_SIZES: dict[str, dict[str, tuple[Architecture, Callable[[], Any]]]] = {
    "tiny": {
        "encoder": (qwen2_5_vl.ARCHITECTURE, qwen.tiny),
        "projector": (projector.ARCHITECTURE, ProjectorConfig.tiny),
        "decoder": (sd3.ARCHITECTURE, SD3Config.tiny),
        "vae": (autoencoder_kl.ARCHITECTURE, AutoencoderKLConfig.tiny),
        **_TEXTS,
    },
    "small": {
        "encoder": (qwen2_5_vl.ARCHITECTURE, qwen.small),
        "projector": (projector.ARCHITECTURE, ProjectorConfig.small),
        "decoder": (sd3.ARCHITECTURE, SD3Config.small),
        "vae": (autoencoder_kl.ARCHITECTURE, AutoencoderKLConfig.small),
        **_TEXTS,
    },
}
SCORER_SIZES: dict[str, dict[str, tuple[Architecture, Callable[[], Any]]]] = {
    "tiny": {
        "clip": (registry.find("CLIPModel"), clip.tiny),
        "longclip": (registry.find("CLIPModel"), clip.tiny_longclip),
        "dinov2": (registry.find("Dinov2Model"), DINOv2Config.tiny),
        "dinov3": (registry.find("DINOv3ViTModel"), DINOv3Config.tiny),
    },
}


def new_model(
    architecture: Architecture,
    config: Any,
    seed: int,
    *,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
) -> Pretrained:
    """Initialises a model, each device making its own shards; the numbers do not depend on the mesh.

    Args:
      architecture: of the registry.
      config: sizes.
      seed: of the numbers.
      mesh: parameters land in their shards on it; None puts them on the default device.
      rules: logical axis -> mesh axes; defaults to `sharding.DEFAULT_RULES`.

    Returns:
      float32 parameters.
    """
    if shapes_only.active():
        return Pretrained(architecture, config, shapes_only.zeros(architecture.abstract(config)))
    module = architecture.module(config, Runtime())
    inputs = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), architecture.example_inputs(config))

    def init(key: jax.Array) -> Any:
        return module.init(key, *inputs)["params"]

    placed = None
    if mesh is not None:
        abstract = architecture.abstract(config)
        placed = sharding.shardings(abstract, architecture.logical_axes.tree(abstract), mesh, rules)
    # Runs once: on a CPU, optimising the program would take many times as long as running it.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    program = jax.jit(init, out_shardings=placed, compiler_options=options)
    return Pretrained(architecture, config, program(jax.random.key(seed)))


def check_size(name: str) -> None:
    """Refuses a "new:SIZE" that there is none of.

    Raises:
      ValueError: names the nearest and all others.
    """
    size = name.removeprefix(NEW)
    if size not in UAE_SIZES:
        near = difflib.get_close_matches(size, UAE_SIZES, n=1, cutoff=0.0)[0]
        listed = ", ".join(NEW + other for other in UAE_SIZES)
        raise ValueError(f"model is {name!r}, the nearest there is {NEW + near!r}; all: {listed}, or a folder")


def new_uae(
    size: str, seed: int, *, mesh: Mesh | None = None, rules: sharding.Rules | None = None, files: str = "tiny"
) -> UAEWeights:
    """Initialises all parts of a UAE model in float32.

    Args:
      size: "tiny" or "small".
      seed: of the numbers; every part has its own.
      mesh, rules: as `new_model`.
      files: folder or name of the model whose tokenizer, processor and scheduler files it takes; of all tokenizers
        the tiny one alone fits the sizes here.

    Raises:
      ValueError: on another size.
    """
    check_size(NEW + size)
    parts = {
        part: new_model(architecture, config(), seed * 1000 + number, mesh=mesh, rules=rules)
        for number, (part, (architecture, config)) in enumerate(UAE_SIZES[size].items())
    }
    return UAEWeights(**parts, files=fitting_files(size, files))


def fitting_files(size: str, files: str) -> dict[str, bytes]:
    """The files of a model (a folder or name) that a model of another size can use: its tokenizer and template."""
    found = uae.read_files(files)
    if size == "tiny":
        return found
    # Image sizes, lengths and the schedule's shift are the tiny model's; without these files the published ones hold.
    own = (uae.INFERENCE, f"{uae.LLM}/preprocessor_config.json", f"{uae.SD3}/scheduler/scheduler_config.json")
    return {name: content for name, content in found.items() if name not in own}


def open_uae(
    name_or_path: str | os.PathLike,
    *,
    seed: int = 0,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: sharding.Rules | None = None,
    progress: transfer.Progress | None = None,
) -> UAEWeights:
    """Initialises "new:tiny" or "new:small" in float32, or loads a UAE folder; see `new_uae` and `uae.load`."""
    if isinstance(name_or_path, str) and name_or_path.startswith(NEW):
        return new_uae(name_or_path.removeprefix(NEW), seed, mesh=mesh, rules=rules)
    if (stand_in := shapes_only.instead_of(name_or_path, "uae")) is not None:
        return stand_in
    return uae.load(name_or_path, dtype=dtype, mesh=mesh, rules=rules, progress=progress)
