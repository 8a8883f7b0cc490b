"""The UAE model that a stage works on: opened for training, opened again to be saved."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from uae_jax.data.prompts import PromptBuilder
from uae_jax.engine import Engine
from uae_jax.models.runtime import Runtime
from uae_jax.weights import errors, new, pretrained, uae
from uae_jax.weights.uae import UAEWeights

_ENCODER_PARTS = ("encoder", "encoder_lora")
_DECODER_PARTS = ("decoder", "decoder_lora", "projector")


@dataclasses.dataclass(frozen=True)
class UAEParts:
    """Where a UAE model's parts come from.

    Attributes:
      model: "new:SIZE", or a UAE folder or name: all parts that nothing below replaces.
      encoder: UAE folder whose encoder, with its adapter and tokenizer, is taken instead.
      decoder: UAE folder whose decoder, with its adapter, and projector are taken instead.
      vae: AutoencoderKL folder that is taken instead.
    """

    model: str
    encoder: str = ""
    decoder: str = ""
    vae: str = ""


def check_parts(parts: UAEParts) -> None:
    """Raises `ValueError` on a part that cannot be; nothing is loaded."""
    for name in (parts.model, parts.encoder, parts.decoder):
        if name.startswith(new.NEW):
            new.check_size(name)
    if not parts.model:
        raise ValueError(
            f"model is empty, wanted a UAE folder or one of {', '.join(new.NEW + size for size in new.UAE_SIZES)}"
        )


def look_for(parts: UAEParts) -> None:
    """Raises `WeightsError` where `open_uae` will find no folder, or one of another kind; names the setting."""
    settings = {"model": parts.model, "encoder_from": parts.encoder, "decoder_from": parts.decoder}
    for setting, name in settings.items():
        if name and not name.startswith(new.NEW):
            with errors.named(f"settings.{setting}"):
                uae.look_for(name)
    if parts.vae:
        with errors.named("settings.vae_from"):
            pretrained.read_config(parts.vae)


def open_uae(parts: UAEParts, seed: int, mesh: Mesh | None = None) -> UAEWeights:
    """Initialises or loads a model in the dtypes of its files, straight into its shards.

    Raises:
      ValueError: on an unknown size, or parts that do not fit each other.
      WeightsError: if a folder cannot be loaded.
    """
    weights = new.open_uae(parts.model, seed=seed, mesh=mesh)
    if parts.encoder:
        other = new.open_uae(parts.encoder, seed=seed, mesh=mesh)
        own = {name: value for name, value in weights.files.items() if not name.startswith(f"{uae.LLM}/")}
        theirs = {name: value for name, value in other.files.items() if name.startswith(f"{uae.LLM}/")}
        taken = {part: getattr(other, part) for part in _ENCODER_PARTS}
        weights = dataclasses.replace(weights, **taken, files=own | theirs)
    if parts.decoder:
        other = new.open_uae(parts.decoder, seed=seed, mesh=mesh)
        weights = dataclasses.replace(weights, **{part: getattr(other, part) for part in _DECODER_PARTS})
    if parts.vae:
        weights = dataclasses.replace(weights, vae=pretrained.load_pretrained(parts.vae, mesh=mesh))
    check_fit(weights)
    return weights


def check_fit(weights: UAEWeights) -> None:
    """Raises `ValueError` where one part's output is not what the next takes; names both widths."""
    pairs = {
        "projector takes hidden states": (weights.projector.config.width, weights.encoder.config.text.width),
        "decoder takes conditioning": (weights.decoder.config.context_dim, weights.projector.config.out),
        "decoder takes latent channels": (weights.decoder.config.in_channels, weights.vae.config.latent_channels),
    }
    wrong = [f"{what} of {wanted}, got {got}" for what, (wanted, got) in pairs.items() if wanted != got]
    if wrong:
        raise ValueError(f"the parts do not fit: {'; '.join(wrong)}; take them from models of one size")


def prompt_builder(weights: UAEWeights, **settings: Any) -> PromptBuilder:
    """Tokenizer, template and image settings of the encoder; further settings as `PromptBuilder.from_folder`."""
    with uae.files_on_disk(weights) as root:
        return PromptBuilder.from_folder(root / uae.LLM, weights.encoder.config, **settings)


def advice(weights: UAEWeights, section: str, name: str, default: Any) -> Any:
    """What the model's `inference.json` says of a setting of "caption" or "paint"."""
    stated = json.loads(weights.files.get(uae.INFERENCE, b"{}"))
    return stated.get(section, {}).get(name, default)


def pooled_constant(weights: UAEWeights, prompts: PromptBuilder, mesh: Mesh | None) -> jax.Array:
    """f32[V], the decoder's constant pooled vector."""
    return Engine(weights, prompts, Runtime(), mesh).pooled


def save_uae(
    parts: UAEParts,
    seed: int,
    mesh: Mesh,
    changed: dict[str, Any],
    folder: Path,
    dtype: str,
    advised: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes the published layout: what the stage changed, and all else as it was opened.

    Args:
      parts, seed, mesh: as given to `open_uae`.
      changed: attribute of `UAEWeights` -> its new value.
      folder: a folder that is there already is replaced.
      dtype: of all models, "float32" or "bfloat16"; adapters keep theirs.
      advised: section -> setting -> value, what `advice` is to find in the result.
    """
    weights = dataclasses.replace(open_uae(parts, seed, mesh), **changed)
    if advised:
        stated = json.loads(weights.files.get(uae.INFERENCE, b"{}"))
        stated |= {section: {**stated.get(section, {}), **values} for section, values in advised.items()}
        said = json.dumps(stated, indent=2) + "\n"
        weights = dataclasses.replace(weights, files={**weights.files, uae.INFERENCE: said.encode()})
    uae.save_published(weights, folder, dtype=jnp.dtype(dtype), force=True)
