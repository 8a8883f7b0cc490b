"""transformers' Dinov2Model and Dinov2WithRegistersModel: their config.json and their keys."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from uae_jax.models import dinov2 as model
from uae_jax.models.dinov2 import DINOv2Config
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.checkpoint import MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import SAME, Entry, fused, fused_bias, linear, module, norm, patch

_PLAIN, _WITH_REGISTERS = "Dinov2Model", "Dinov2WithRegistersModel"

# Published name -> (our field, what transformers assumes where a config.json is silent).
_FIELDS: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "num_channels": ("channels", 3),
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "mlp_ratio": ("mlp_ratio", 4),
    "use_swiglu_ffn": ("swiglu", False),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "qkv_bias": ("qkv_bias", True),
    "hidden_act": ("hidden_act", "gelu"),
    "layerscale_value": ("layer_scale", 1.0),
}
# The same where the two classes differ.
_PLAIN_FIELDS = {**_FIELDS, "use_mask_token": ("mask_token", True)}
_REGISTER_FIELDS = {**_FIELDS, "patch_size": ("patch_size", 16), "num_register_tokens": ("registers", 4)}

# Options with one implemented value, which may also be absent.
_ONLY = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
# Options of `facebookresearch/dinov2` that early files with registers repeat.
_ONLY_WITH_REGISTERS = {**_ONLY, "interpolate_antialias": True, "interpolate_offset": 0.0}

# Keys that do not touch what these two classes compute: provenance, initialisation, labels, other classes' outputs.
_WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"),
    *("id2label", "initializer_range", "label2id", "num_labels", "problem_type"),
    *("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
}


def config_from_json(config_json: dict, *, registers: bool = False) -> DINOv2Config:
    """Reads a published `config.json`, with `registers` that of the class with registers.

    Raises:
      WeightsError: on any option that the module does not implement; names the key, what was got and what was wanted.
    """
    name = _WITH_REGISTERS if registers else _PLAIN
    fields = _REGISTER_FIELDS if registers else _PLAIN_FIELDS
    only = _ONLY_WITH_REGISTERS if registers else _ONLY
    for key, wanted in only.items():
        got = config_json.get(key, wanted)
        if got != wanted:
            raise WeightsError(f"{name} config: {key} is {got!r}, wanted {wanted!r}: nothing else is implemented")
    unknown = sorted(config_json.keys() - fields.keys() - only.keys() - _WITHOUT_EFFECT)
    if unknown:
        raise WeightsError(
            f"{name} config: unknown keys {', '.join(unknown)}; wanted only {', '.join([*fields, *only])}"
        )
    values = {}
    for key, (field, default) in fields.items():
        got, least = config_json.get(key, default), 0 if field == "registers" else 1
        values[field] = _checked(f"{name} config: {key}", got, default, least)
    try:
        return DINOv2Config(**values)
    except ValueError as error:
        raise WeightsError(f"{name} config: {error}") from None


def _config_with_registers(config_json: dict) -> DINOv2Config:
    return config_from_json(config_json, registers=True)


def _checked(what: str, value: Any, default: Any, least: int) -> Any:
    """Returns a value of the kind of its default; a square written as a pair becomes its side.

    Raises:
      WeightsError: if it is of another kind.
    """
    twice = isinstance(value, list) and len(value) == 2 and value[0] == value[1]
    if twice and what.endswith(("image_size", "patch_size")):
        value = value[0]
    if isinstance(default, bool):
        fits, wanted = type(value) is bool, "true or false"
    elif isinstance(default, int):
        fits, wanted = type(value) is int and value >= least, f"a whole number from {least}"
    elif isinstance(default, float):
        fits, wanted = type(value) in (int, float) and value > 0, "a number above 0"
    else:
        fits, wanted = isinstance(value, str), "a name"
    if not fits:
        raise WeightsError(f"{what} is {value!r}, wanted {wanted}")
    return value


def config_to_json(config: DINOv2Config) -> dict:
    """Writes what transformers reads."""
    registers = config.registers is not None
    fields = _REGISTER_FIELDS if registers else _PLAIN_FIELDS
    return {
        **{key: getattr(config, field) for key, (field, _) in fields.items()},
        **_ONLY,
        "architectures": [_WITH_REGISTERS if registers else _PLAIN],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
    }


def table(config: DINOv2Config) -> list[Entry]:
    """One entry per parameter, under the keys of the published files."""
    layers = range(config.layers)
    tokens = {"cls_token": "cls_token", "position": "position_embeddings"}
    if config.mask_token:
        tokens["mask_token"] = "mask_token"
    if config.registers is not None:
        tokens["register_tokens"] = "register_tokens"
    entries = [Entry(ours, f"embeddings.{theirs}") for ours, theirs in tokens.items()]
    kernel = patch(config.channels, config.patch_size)
    projection = {"kernel": ("weight", kernel), "bias": ("bias", SAME)}
    entries += module("patch_embed", "embeddings.patch_embeddings.projection", projection)
    path, key = "layers", "encoder.layer.{}"
    for i in (1, 2):
        entries += norm(f"{path}/norm{i}", f"{key}.norm{i}", layers=layers)
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        theirs = f"{key}.attention.attention.{theirs}"
        entries += linear(f"{path}/attention/{ours}", theirs, bias=config.qkv_bias, layers=layers)
    entries += linear(f"{path}/attention/o", f"{key}.attention.output.dense", layers=layers)
    for ours, theirs in (("attention_scale", "layer_scale1"), ("mlp_scale", "layer_scale2")):
        entries.append(Entry(f"{path}/{ours}", f"{key}.{theirs}.lambda1", SAME, tuple(layers)))
    if config.swiglu:
        both = {"kernel": ("weight", fused(2)), "bias": ("bias", fused_bias(2))}
        entries += module(f"{path}/mlp/gate_up", f"{key}.mlp.weights_in", both, layers)
        entries += linear(f"{path}/mlp/down", f"{key}.mlp.weights_out", layers=layers)
    else:
        entries += linear(f"{path}/mlp/up", f"{key}.mlp.fc1", layers=layers)
        entries += linear(f"{path}/mlp/down", f"{key}.mlp.fc2", layers=layers)
    return entries + norm("norm", "layernorm")


# How transformers 5 names the modules in memory, and writes them with save_original_format=False.
_IN_MEMORY = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.down_proj": "mlp.weights_out",
}
_IN_MEMORY_KEY = re.compile(r"(encoder\.layer\.\d+)\.(" + "|".join(map(re.escape, _IN_MEMORY)) + r")\.(weight|bias)")
_GATE_KEY = re.compile(r"(encoder\.layer\.\d+\.mlp)\.gate_proj\.(weight|bias)")


def canonical(tensors: Mapping[str, Tensor], config: DINOv2Config) -> dict[str, Tensor]:
    """Brings transformers' names in memory to those of the published files.

    Raises:
      WeightsError: if a tensor stands under both names.
    """
    del config
    result: dict[str, Tensor] = {}
    joined = set()
    for key, tensor in tensors.items():
        new = key
        if match := _IN_MEMORY_KEY.fullmatch(key):
            new = f"{match[1]}.{_IN_MEMORY[match[2]]}.{match[3]}"
        elif (match := _GATE_KEY.fullmatch(key)) and (up := f"{match[1]}.up_proj.{match[2]}") in tensors:
            new = f"{match[1]}.weights_in.{match[2]}"
            tensor = _concatenate(new, tensor, tensors[up])
            joined.add(up)
        if new in result or (new != key and new in tensors):
            raise WeightsError(f"{tensor.file}: {key}: stands under {new} too, wanted once")
        result[new] = tensor
    return {key: tensor for key, tensor in result.items() if key not in joined}


def module_name(module: str) -> str:
    """The name in memory of a module in the published files; a gated MLP's fused half has none of its own."""
    for memory, published in _IN_MEMORY.items():
        if module.endswith(published):
            return module.removesuffix(published) + memory
    return module


def _concatenate(key: str, first: Tensor, second: Tensor) -> Tensor:
    """Two tensors as one along the first axis, still on disk.

    Raises:
      WeightsError: if their other axes or dtypes differ.
    """
    if first.shape[1:] != second.shape[1:] or first.dtype != second.dtype:
        shown = f"{first.dtype}{list(first.shape)} and {second.dtype}{list(second.shape)}"
        raise WeightsError(f"{first.file}: {first.key} and {second.key}: got {shown}, wanted them alike")
    shape = (first.shape[0] + second.shape[0], *first.shape[1:])
    return Tensor(key, first.file, shape, first.dtype, lambda: np.concatenate([first.read(), second.read()]))


def _architecture(name: str, read: Any) -> Architecture:
    return Architecture(
        name=name,
        config_class=DINOv2Config,
        module=model.DINOv2,
        example_inputs=model.example_inputs,
        logical_axes=model.LOGICAL_AXES,
        config_from_json=read,
        config_to_json=config_to_json,
        table=table,
        canonical=canonical,
        file_stem=MODEL,
        module_name=module_name,
    )


ARCHITECTURE = _architecture(_PLAIN, config_from_json)
ARCHITECTURE_WITH_REGISTERS = _architecture(_WITH_REGISTERS, _config_with_registers)
