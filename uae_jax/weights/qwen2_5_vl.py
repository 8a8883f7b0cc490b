"""Qwen2.5-VL as transformers publishes it (`Qwen2_5_VLForConditionalGeneration`).

Two layouts of keys and two of `config.json` are in use. Keys: that of the hub, which transformers also writes
(`model.layers...`, `visual...`), and that of the model in memory (`model.language_model.layers...`,
`model.visual...`). Config: flat with `rope_scaling`, as on the hub, and nested with `rope_parameters`, as
transformers 5 writes it. All four are read; those of the hub are written, which every version of transformers reads:
version 4, with which the authors published, takes a nested config for the sizes of the 72B model.
"""

import re
from collections.abc import Mapping
from typing import Any

from uae_jax.models import qwen2_5_vl
from uae_jax.models.layers import ACTIVATIONS
from uae_jax.models.qwen2_5_vl import Qwen2_5_VLConfig, TextConfig, VisionConfig
from uae_jax.weights.architecture import Architecture, Tensors
from uae_jax.weights.checkpoint import MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import Entry, flat_patch, fused, fused_bias, linear, module, norm

NAME = "Qwen2_5_VLForConditionalGeneration"
_MODEL_TYPE = "qwen2_5_vl"

Section = Mapping[str, Any]

# Published key -> (our field, what transformers takes where the key is absent).
_TEXT = {
    "vocab_size": ("vocab", 152_064),
    "hidden_size": ("width", 8192),
    "num_hidden_layers": ("depth", 80),
    "num_attention_heads": ("heads", 64),
    "num_key_value_heads": ("kv_heads", 8),
    "intermediate_size": ("intermediate", 29_568),
    "max_position_embeddings": ("max_positions", 32_768),
}
_VISION = {
    "depth": ("depth", 32),
    "hidden_size": ("width", 3584),
    "num_heads": ("heads", 16),
    "intermediate_size": ("intermediate", 3420),
    "out_hidden_size": ("out_width", 3584),
    "in_channels": ("channels", 3),
    "patch_size": ("patch_size", 14),
    "temporal_patch_size": ("temporal_patch_size", 2),
    "spatial_merge_size": ("merge_size", 2),
    "window_size": ("window_size", 112),
    "tokens_per_second": ("tokens_per_second", 4),
}
_IMAGE_TOKENS = {
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
}
_TEXT_TOKENS = {"bos_token_id": 151_643, "eos_token_id": 151_645, "pad_token_id": None}
_MROPE_SECTION = (16, 24, 24)
_VISION_THETA = 10_000.0
_FULL_ATTENTION_LAYERS = (7, 15, 23, 31)


def config_from_json(config_json: dict) -> Qwen2_5_VLConfig:
    """Reads a published `config.json`, flat or nested.

    Every key that transformers' inference reads is looked at; others (dropout, initialisation, dtype) have no effect
    there either.

    Raises:
      WeightsError: on a value that the module does not implement; names key, got and wanted.
    """
    if "quantization_config" in config_json:
        raise WeightsError(f"{NAME}: quantization_config is given, wanted unquantised weights")
    nested = _section(config_json, "text_config")
    text = config_json if nested is None else nested
    vision = _section(config_json, "vision_config") or {}
    tied = config_json.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False
    try:
        return Qwen2_5_VLConfig(
            vision=_vision_config(vision),
            text=_text_config(text),
            tie_word_embeddings=tied,
            **{key: _size(key, config_json.get(key, default)) for key, default in _IMAGE_TOKENS.items()},
            **{key: _token(key, text.get(key, default)) for key, default in _TEXT_TOKENS.items()},
        )
    except WeightsError:
        raise
    except ValueError as error:  # sizes that do not fit together
        raise WeightsError(f"{NAME}: {error}") from None


def config_to_json(config: Qwen2_5_VLConfig) -> dict:
    """Writes the flat form of the hub."""
    text, vision, eos = config.text, config.vision, config.eos_token_id
    angles = {}  # version 4 knows but one kind, and no key for it
    if vision.rope_theta != _VISION_THETA:
        angles["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.rope_theta}
    return {
        "architectures": [NAME],
        "model_type": _MODEL_TYPE,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{key: getattr(config, key) for key in _IMAGE_TOKENS},
        **{key: getattr(text, field) for key, (field, _) in _TEXT.items()},
        "hidden_act": text.activation,
        "rms_norm_eps": text.epsilon,
        "use_sliding_window": False,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "vision_config": {
            **{key: getattr(vision, field) for key, (field, _) in _VISION.items()},
            "hidden_act": vision.activation,
            "fullatt_block_indexes": list(vision.full_attention_layers),
            **angles,
        },
    }


def _text_config(text: Section) -> TextConfig:
    sizes = {field: text.get(key, default) for key, (field, default) in _TEXT.items()}
    if sizes["kv_heads"] is None:
        sizes["kv_heads"] = sizes["heads"]
    sizes = {field: _size(key, sizes[field]) for key, (field, _) in _TEXT.items()}
    if text.get("use_sliding_window"):
        raise WeightsError(f"{NAME}: use_sliding_window is {text['use_sliding_window']!r}, wanted false")
    kinds = set(text.get("layer_types") or ())
    if not kinds <= {"full_attention"}:
        raise WeightsError(f"{NAME}: layer_types holds {sorted(kinds)}, wanted full_attention only")
    _check_head_dim("text", text.get("head_dim"), sizes["width"] // sizes["heads"])
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}
    _check_rope("text", rope, ("default", "mrope"))
    return TextConfig(
        **sizes,
        activation=_activation("text", text),
        rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1_000_000.0))),
        mrope_section=_numbers("mrope_section", rope.get("mrope_section", _MROPE_SECTION)),
        epsilon=float(text.get("rms_norm_eps", 1e-5)),
    )


def _vision_config(vision: Section) -> VisionConfig:
    sizes = {field: _size(key, vision.get(key, default)) for key, (field, default) in _VISION.items()}
    # Hub files state the channels as `in_chans`, which transformers does not read.
    if vision.get("in_chans", sizes["channels"]) != sizes["channels"]:
        raise WeightsError(f"{NAME}: vision in_chans is {vision['in_chans']!r}, wanted {sizes['channels']}")
    _check_head_dim("vision", vision.get("head_dim"), sizes["width"] // sizes["heads"])
    rope = vision.get("rope_parameters") or {}
    _check_rope("vision", rope, ("axial",))
    return VisionConfig(
        **sizes,
        activation=_activation("vision", vision),
        rope_theta=float(rope.get("rope_theta", _VISION_THETA)),
        full_attention_layers=_numbers(
            "fullatt_block_indexes", vision.get("fullatt_block_indexes", _FULL_ATTENTION_LAYERS)
        ),
    )


def _section(config_json: dict, key: str) -> dict | None:
    value = config_json.get(key)
    if value is not None and not isinstance(value, dict):
        raise WeightsError(f"{NAME}: {key} is a {type(value).__name__}, wanted an object")
    return value


def _size(key: str, value: Any) -> int:
    if isinstance(value, list | tuple) and len(set(value)) == 1:  # a side written once per axis
        value = value[0]
    if type(value) is not int or value < 1:
        raise WeightsError(f"{NAME}: {key} is {value!r}, wanted a positive integer")
    return value


def _token(key: str, value: Any) -> int | tuple[int, ...] | None:
    if isinstance(value, list) and value and key == "eos_token_id":
        return _numbers(key, value)
    if value is not None and type(value) is not int:
        raise WeightsError(f"{NAME}: {key} is {value!r}, wanted a token number or null")
    return value


def _numbers(key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(type(n) is int for n in value):
        raise WeightsError(f"{NAME}: {key} is {value!r}, wanted a list of integers")
    return tuple(value)


def _activation(part: str, section: Section) -> str:
    name = section.get("hidden_act", "silu")
    if name not in ACTIVATIONS:
        raise WeightsError(f"{NAME}: {part} hidden_act is {name!r}, wanted one of {', '.join(ACTIVATIONS)}")
    return name


def _check_rope(part: str, rope: Section, kinds: tuple[str, ...]) -> None:
    for key in ("rope_type", "type"):
        if rope.get(key, kinds[0]) not in kinds:
            raise WeightsError(f"{NAME}: {part} {key} is {rope[key]!r}, wanted one of {', '.join(kinds)}")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise WeightsError(f"{NAME}: {part} partial_rotary_factor is {rope['partial_rotary_factor']!r}, wanted 1")


def _check_head_dim(part: str, got: Any, wanted: int) -> None:
    if got is not None and got != wanted:
        raise WeightsError(f"{NAME}: {part} head_dim is {got!r}, wanted {wanted}, the width over the heads")


def table(config: Qwen2_5_VLConfig) -> list[Entry]:
    """One entry per parameter, under the keys of the hub."""
    entries = [
        Entry("language/embedding", "model.embed_tokens.weight"),
        *norm("language/norm", "model.norm", bias=False),
    ]
    if not config.tie_word_embeddings:
        entries += linear("language/lm_head", "lm_head", bias=False)
    path, key, layers = "language/layers", "model.layers.{}", range(config.text.depth)
    entries += norm(f"{path}/attn_norm", f"{key}.input_layernorm", bias=False, layers=layers)
    entries += norm(f"{path}/mlp_norm", f"{key}.post_attention_layernorm", bias=False, layers=layers)
    for name in "qkvo":
        entries += linear(f"{path}/attn/{name}", f"{key}.self_attn.{name}_proj", bias=name != "o", layers=layers)
    for name in ("gate", "up", "down"):
        entries += linear(f"{path}/mlp/{name}", f"{key}.mlp.{name}_proj", bias=False, layers=layers)
    return entries + _vision_table(config.vision)


def _vision_table(vision: VisionConfig) -> list[Entry]:
    side = vision.patch_size
    patch = flat_patch(vision.channels, vision.temporal_patch_size, side, side)
    qkv = {"kernel": ("weight", fused(3)), "bias": ("bias", fused_bias(3))}
    path, key, layers = "vision/layers", "visual.blocks.{}", range(vision.depth)
    entries = [
        *module("vision/patch_embed", "visual.patch_embed.proj", {"kernel": ("weight", patch)}),
        *norm(f"{path}/attn_norm", f"{key}.norm1", bias=False, layers=layers),
        *norm(f"{path}/mlp_norm", f"{key}.norm2", bias=False, layers=layers),
        *module(f"{path}/attn/qkv", f"{key}.attn.qkv", qkv, layers),
        *linear(f"{path}/attn/proj", f"{key}.attn.proj", layers=layers),
        *norm("vision/merger/norm", "visual.merger.ln_q", bias=False),
        *linear("vision/merger/up", "visual.merger.mlp.0"),
        *linear("vision/merger/down", "visual.merger.mlp.2"),
    ]
    for name in ("gate", "up", "down"):
        entries += linear(f"{path}/mlp/{name}", f"{key}.mlp.{name}_proj", layers=layers)
    return entries


_BUFFERS = re.compile(r"(.*\.)?rotary(_pos)?_emb\.inv_freq")
_IN_MEMORY = re.compile(r"^model\.(?:language_(model)|(visual))\.")


def canonical(tensors: Tensors, config: Qwen2_5_VLConfig) -> dict[str, Tensor]:
    """Brings both layouts of keys to that of the hub.

    Rotary frequencies, which follow from the config, are dropped; so is a copy of a tied head, as transformers does.

    Raises:
      WeightsError: if a tensor stands in both layouts.
    """
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if _BUFFERS.fullmatch(key) or (key == "lm_head.weight" and config.tie_word_embeddings):
            continue
        name = _IN_MEMORY.sub(lambda match: f"{match[1] or match[2]}.", key)
        if name in result:
            raise WeightsError(f"{tensor.file}: {key}: stands as {result[name].key} too, wanted once")
        result[name] = tensor
    return result


def _module_name(key: str) -> str:
    """Hub name -> name in memory: transformers keeps both towers inside `model`."""
    for hub, memory in {"model.": "model.language_model.", "visual.": "model.visual."}.items():
        if key.startswith(hub):
            return memory + key.removeprefix(hub)
    return key


ARCHITECTURE = Architecture(
    name=NAME,
    config_class=Qwen2_5_VLConfig,
    module=qwen2_5_vl.Qwen2_5_VL,
    example_inputs=qwen2_5_vl.example_inputs,
    logical_axes=qwen2_5_vl.LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    file_stem=MODEL,
    canonical=canonical,
    module_name=_module_name,
)
