"""Of which models a data set's latents and hidden states are: it is of no use to a training with others.

Beside what `uae data encode` writes, FILE.settings.json: {"encoder": digest, "vae": digest}.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp

from uae_jax.data.caption_files import settings_file
from uae_jax.data.config import DataConfig
from uae_jax.weights import fingerprint
from uae_jax.weights.uae import UAEWeights


def digests(weights: UAEWeights) -> dict[str, str]:
    """What tells a model's encoder, with its adapter, and its VAE from others."""
    adapter = weights.encoder_lora
    lora = {} if adapter is None else {"lora": adapter.params, "scale": jnp.float32(adapter.config.scale)}
    encoder = {"params": weights.encoder.params, **lora}
    return {name: fingerprint.of_values(params) for name, params in (("encoder", encoder), ("vae", weights.vae.params))}


def recorded(data: Iterable[DataConfig]) -> dict[Path, dict[str, str]]:
    """The digests beside data sets, by file; of files of other origin, or of earlier versions, there are none."""
    named = [Path(source.path).expanduser() for each in data for source in each.sources]
    files = [settings_file(path) for path in named if path.name]
    return {file: json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()}


def check(found: dict[Path, dict[str, str]], weights: UAEWeights) -> None:
    """Raises `ValueError` where data is of another encoder or VAE than a model's."""
    if not found:
        return
    now = digests(weights)
    for file, then in found.items():
        if others := [name for name in now if then.get(name) not in (None, now[name])]:
            raise ValueError(
                f"{file.name.removesuffix('.settings.json')}: was encoded with another {' and '.join(others)} than the "
                f"model has; encode it again, or remove {file} to train on it all the same"
            )
