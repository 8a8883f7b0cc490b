"""DINOv3 ViT in the layout of transformers.

On disk the layers are `layer.N...`; transformers 5 holds them in memory as `model.layer.N...`, and can save them so.
Both are read, the first is written.
"""

from collections.abc import Callable, Mapping
from typing import Any

from uae_jax.models import dinov3
from uae_jax.models.dinov3 import DINOv3Config
from uae_jax.models.layers import ACTIVATIONS
from uae_jax.weights import checkpoint
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import SAME, Entry, Layout, fused, fused_bias, linear, module, norm, patch

# Our field -> the published one.
_FIELDS = {
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "patch_size": "patch_size",
    "registers": "num_register_tokens",
    "image_size": "image_size",
    "activation": "hidden_act",
    "gated": "use_gated_mlp",
    "query_bias": "query_bias",
    "key_bias": "key_bias",
    "value_bias": "value_bias",
    "out_bias": "proj_bias",
    "mlp_bias": "mlp_bias",
    "rope_theta": "rope_theta",
    "epsilon": "layer_norm_eps",
    "layer_scale": "layerscale_value",
}

# What transformers takes where a config.json is silent.
_DEFAULTS = {
    "patch_size": 16,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "hidden_act": "gelu",
    "attention_dropout": 0.0,
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "image_size": 224,
    "num_channels": 3,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "layerscale_value": 1.0,
    "drop_path_rate": 0.0,
    "use_gated_mlp": False,
    "num_register_tokens": 0,
}

_Check = tuple[Callable[[Any], bool], str]
_COUNT: _Check = (lambda v: type(v) is int and v > 0, "a positive whole number")
_NUMBER: _Check = (lambda v: type(v) in (int, float) and v > 0, "a positive number")
_SWITCH: _Check = (lambda v: type(v) is bool, "true or false")
_ZERO: _Check = (lambda v: v == 0, "0")

_CHECKS: dict[str, _Check] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), _COUNT),
    **dict.fromkeys(("patch_size", "image_size"), _COUNT),
    **dict.fromkeys(("layer_norm_eps", "rope_theta"), _NUMBER),
    **dict.fromkeys(("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "use_gated_mlp"), _SWITCH),
    **dict.fromkeys(("attention_dropout", "drop_path_rate"), _ZERO),
    "hidden_act": (lambda v: v in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "num_channels": (lambda v: v == 3, "3"),
    "num_register_tokens": (lambda v: type(v) is int and v >= 0, "a whole number"),
    "layerscale_value": (lambda v: type(v) in (int, float), "a number"),
}

# Keys that do not touch what the model computes: provenance, initialisation, labels, a backbone's outputs, and the
# augmentation of coordinates in training.
_WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version"),
    *("id2label", "initializer_range", "label2id", "num_labels", "problem_type"),
    *("chunk_size_feed_forward", "is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict"),
    *("apply_layernorm", "out_features", "out_indices", "reshape_hidden_states", "stage_names"),
    *("pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift"),
}


def config_from_json(config_json: dict) -> DINOv3Config:
    """Reads the `config.json` of a `DINOv3ViTModel`.

    Raises:
      WeightsError: on options that the module does not implement.
    """
    unknown = sorted(config_json.keys() - _DEFAULTS.keys() - _WITHOUT_EFFECT)
    if unknown:
        raise WeightsError(
            f"config.json: unknown keys {', '.join(unknown)}, wanted only {', '.join(sorted(_DEFAULTS))}"
        )
    options = _DEFAULTS | config_json
    for key in ("patch_size", "image_size"):  # transformers takes [height, width] too
        side = options[key]
        if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
            options[key] = side[0]
    for key, (accepts, wanted) in _CHECKS.items():
        if not accepts(options[key]):
            raise WeightsError(f"config.json: {key} is {options[key]!r}, wanted {wanted}")
    try:
        return DINOv3Config(**{ours: options[theirs] for ours, theirs in _FIELDS.items()})
    except ValueError as error:
        raise WeightsError(f"config.json: {error}") from None


def config_to_json(config: DINOv3Config) -> dict:
    """Writes the `config.json` of a `DINOv3ViTModel`."""
    sizes = {theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()}
    fixed = {"architectures": ["DINOv3ViTModel"], "model_type": "dinov3_vit", "num_channels": 3}
    return fixed | {"attention_dropout": 0.0, "drop_path_rate": 0.0} | sizes


_TOKEN = Layout(lambda w: w.reshape(w.shape[2]), lambda w: w.reshape(1, 1, w.shape[0]))  # [1, 1, D] <-> [D]
_TOKENS = Layout(lambda w: w.reshape(w.shape[1:]), lambda w: w.reshape(1, *w.shape))  # [1, R, D] <-> [R, D]


def table(config: DINOv3Config) -> list[Entry]:
    """Entries of a `DINOv3ViTModel`."""
    numbers, key = range(config.depth), "layer.{}"
    kernel = {"kernel": ("weight", fused(config.heads))}
    bias = {"bias": ("bias", fused_bias(config.heads))}
    square = {"bias": ("bias", SAME), "kernel": ("weight", patch(3, config.patch_size))}
    entries = [
        Entry("class_token", "embeddings.cls_token", _TOKEN),
        Entry("mask_token", "embeddings.mask_token", _TOKEN),
        Entry("registers", "embeddings.register_tokens", _TOKENS),
        *module("patch", "embeddings.patch_embeddings", square),
        *norm("norm", "norm"),
    ]
    for name, biased in zip("qkv", (config.query_bias, config.key_bias, config.value_bias), strict=True):
        parameters = kernel | (bias if biased else {})
        entries += module(f"layers/attn/{name}", f"{key}.attention.{name}_proj", parameters, numbers)
    entries += linear("layers/attn/out", f"{key}.attention.o_proj", bias=config.out_bias, layers=numbers)
    for name in ("gate", "up", "down") if config.gated else ("up", "down"):
        entries += linear(f"layers/mlp/{name}", f"{key}.mlp.{name}_proj", bias=config.mlp_bias, layers=numbers)
    for i in (1, 2):
        entries += norm(f"layers/norm{i}", f"{key}.norm{i}", layers=numbers)
        entries.append(Entry(f"layers/scale{i}", f"{key}.layer_scale{i}.lambda1", layers=tuple(numbers)))
    return entries


def canonical(tensors: Mapping[str, Tensor], config: DINOv3Config) -> dict[str, Tensor]:
    """Brings the layers to their keys on disk, and drops the rotary frequencies, which are no parameters."""
    del config
    return {
        key.removeprefix("model.") if key.startswith("model.layer.") else key: tensor
        for key, tensor in tensors.items()
        if key != "rope_embeddings.inv_freq"
    }


def _module_name(key: str) -> str:
    return f"model.{key}" if key.startswith("layer.") else key


ARCHITECTURE = Architecture(
    name="DINOv3ViTModel",
    config_class=DINOv3Config,
    module=dinov3.DINOv3,
    example_inputs=dinov3.example_inputs,
    logical_axes=dinov3.LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    file_stem=checkpoint.MODEL,
    canonical=canonical,
    module_name=_module_name,
)
