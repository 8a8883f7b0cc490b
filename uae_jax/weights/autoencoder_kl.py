"""diffusers' AutoencoderKL: its config.json and its keys."""

import re
from collections.abc import Mapping
from typing import Any

from uae_jax.models import autoencoder_kl as model
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.checkpoint import DIFFUSION_MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import Entry, conv, linear, norm

_NAME = "AutoencoderKL"
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"

# What diffusers assumes where a config.json is silent.
_DEFAULTS = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "sample_size": 32,
    "force_upcast": True,
}


def config_from_json(config_json: dict) -> AutoencoderKLConfig:
    """Reads a published `config.json`.

    Raises:
      WeightsError: on any option that the module does not implement; names the key, what was got and what was wanted.
    """
    given = {key: value for key, value in config_json.items() if not key.startswith("_")}  # "_" marks provenance
    values = {key: _checked(key, given.pop(key, default), default) for key, default in _DEFAULTS.items()}
    blocks = len(values["block_out_channels"])
    only = {
        "down_block_types": ([_DOWN], [_DOWN] * blocks),
        "up_block_types": ([_UP], [_UP] * blocks),
        "act_fn": ("silu", "silu"),
        "latents_mean": (None, None),
        "latents_std": (None, None),
    }
    for key, (default, wanted) in only.items():
        got = given.pop(key, default)
        if got != wanted:
            raise WeightsError(f"{_NAME} config: {key} is {got!r}, wanted {wanted!r}: the only kind implemented")
    if given:
        known = ", ".join([*_DEFAULTS, *only])
        raise WeightsError(f"{_NAME} config: unknown keys {', '.join(sorted(given))}; wanted only {known}")
    values["block_out_channels"] = tuple(values["block_out_channels"])
    values["shift_factor"] = values["shift_factor"] or 0.0
    try:
        return AutoencoderKLConfig(**values)
    except ValueError as error:
        raise WeightsError(f"{_NAME} config: {error}") from None


def _checked(key: str, value: Any, default: Any) -> Any:
    """Returns a value of the kind of its default.

    Raises:
      WeightsError: if it is of another kind.
    """
    number = type(value) in (int, float)
    if default is None:
        fits, wanted = value is None or number, "a number or null"
    elif isinstance(default, bool):
        fits, wanted = type(value) is bool, "true or false"
    elif isinstance(default, int):
        fits, wanted = type(value) is int and value > 0, "a whole number above 0"
    elif isinstance(default, float):
        fits, wanted = number and value > 0, "a number above 0"
    else:
        fits = isinstance(value, list) and all(type(n) is int and n > 0 for n in value)
        wanted = "a list of whole numbers above 0"
    if not fits:
        raise WeightsError(f"{_NAME} config: {key} is {value!r}, wanted {wanted}")
    return value


def config_to_json(config: AutoencoderKLConfig) -> dict:
    """Writes what diffusers reads."""
    blocks = len(config.block_out_channels)
    fields = {key: getattr(config, key) for key in _DEFAULTS}
    return {
        **fields,
        "_class_name": _NAME,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": [_DOWN] * blocks,
        "up_block_types": [_UP] * blocks,
        "act_fn": "silu",
        "latents_mean": None,
        "latents_std": None,
    }


def table(config: AutoencoderKLConfig) -> list[Entry]:
    """One entry per parameter."""
    widths = config.block_out_channels
    entries = []
    for half in ("encoder", "decoder"):
        entries += conv(f"{half}/conv_in", f"{half}.conv_in")
        entries += norm(f"{half}/norm_out", f"{half}.conv_norm_out")
        entries += conv(f"{half}/conv_out", f"{half}.conv_out")
        entries += _mid_block(f"{half}/mid", f"{half}.mid_block", config.mid_block_add_attention)
    before = widths[0]
    for i, width in enumerate(widths):
        resample = None if i == len(widths) - 1 else "downsamplers"
        key = f"encoder.down_blocks.{i}"
        entries += _block(f"encoder/down_{i}", key, before, width, config.layers_per_block, resample)
        before = width
    before = widths[-1]
    for i, width in enumerate(reversed(widths)):
        resample = None if i == len(widths) - 1 else "upsamplers"
        key = f"decoder.up_blocks.{i}"
        entries += _block(f"decoder/up_{i}", key, before, width, config.layers_per_block + 1, resample)
        before = width
    if config.use_quant_conv:
        entries += conv("quant_conv", "quant_conv")
    if config.use_post_quant_conv:
        entries += conv("post_quant_conv", "post_quant_conv")
    return entries


def _mid_block(path: str, key: str, attention: bool) -> list[Entry]:
    entries = _residual(f"{path}/residual_0", f"{key}.resnets.0", shortcut=False)
    entries += _residual(f"{path}/residual_1", f"{key}.resnets.1", shortcut=False)
    if attention:
        path, key = f"{path}/attention", f"{key}.attentions.0"
        entries += norm(f"{path}/norm", f"{key}.group_norm")
        for ours, theirs in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
            entries += linear(f"{path}/{ours}", f"{key}.{theirs}")
    return entries


def _block(path: str, key: str, before: int, width: int, depth: int, resample: str | None) -> list[Entry]:
    entries = []
    for i in range(depth):
        entries += _residual(f"{path}/residual_{i}", f"{key}.resnets.{i}", shortcut=i == 0 and before != width)
    if resample:
        entries += conv(f"{path}/resample", f"{key}.{resample}.0.conv")
    return entries


def _residual(path: str, key: str, *, shortcut: bool) -> list[Entry]:
    entries = []
    for i in (1, 2):
        entries += norm(f"{path}/norm{i}", f"{key}.norm{i}") + conv(f"{path}/conv{i}", f"{key}.conv{i}")
    return entries + (conv(f"{path}/shortcut", f"{key}.conv_shortcut") if shortcut else [])


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_KEY = re.compile(r"(.*\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)")


def canonical(tensors: Mapping[str, Tensor], config: AutoencoderKLConfig) -> dict[str, Tensor]:
    """Renames the attention of checkpoints from before diffusers 0.14 (query, key, value, proj_attn).

    Raises:
      WeightsError: if a tensor stands under both names.
    """
    del config
    result = {}
    for key, tensor in tensors.items():
        old = _OLD_KEY.fullmatch(key)
        new = f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}" if old else key
        if new in result or (old and new in tensors):
            raise WeightsError(f"{tensor.file}: {key}: stands under {new} too, wanted once")
        result[new] = tensor
    return result


ARCHITECTURE = Architecture(
    name=_NAME,
    config_class=AutoencoderKLConfig,
    module=model.AutoencoderKL,
    example_inputs=model.example_inputs,
    logical_axes=model.LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    canonical=canonical,
    file_stem=DIFFUSION_MODEL,
)
