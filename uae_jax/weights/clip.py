"""CLIP and LongCLIP in the layouts of transformers and of OpenAI.

transformers' keys are the canonical ones, and what is written. OpenAI's layout, in which LongCLIP is published, is
brought to them by `canonical`; such a file has no `config.json`, so `open_openai_clip` reads the sizes off the shapes.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from uae_jax.models import clip
from uae_jax.models.clip import LEGACY_EOS, CLIPConfig, CLIPTextConfig, CLIPVisionConfig, TowerConfig
from uae_jax.models.layers import ACTIVATIONS
from uae_jax.weights import checkpoint
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import LINEAR, Entry, fused, fused_bias, linear, module, norm, patch

Tensors = Mapping[str, Tensor]

# What transformers takes where a config.json is silent.
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
_PROJECTION_DEFAULT = 512


# config.json


def _checked(options: dict, source: str) -> dict:
    """Returns the options, having refused those that the modules cannot do.

    Keys that transformers' config class does not declare have no effect there either, and are let pass: published
    files repeat some seventy settings of text generation.
    """
    wanted: dict[str, tuple[Callable[[Any], bool], str]] = {
        "hidden_act": (lambda v: v in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "layer_norm_eps": (lambda v: type(v) in (int, float) and v > 0, "a positive number"),
        "attention_dropout": (lambda v: v == 0, "0"),
        "num_channels": (lambda v: v == 3, "3"),
        "eos_token_id": (lambda v: type(v) is int, "one whole number"),
        "pruned_heads": (lambda v: not v, "none"),
        "quantization_config": (lambda v: v is None, "none: quantised weights cannot be read"),
    }
    for key, value in options.items():
        if key in wanted:
            accepts, what = wanted[key]
        elif key in _TEXT_DEFAULTS or key in _VISION_DEFAULTS:
            accepts, what = (lambda v: type(v) is int and v > 0), "a positive whole number"
        else:
            continue
        if not accepts(value):
            raise WeightsError(f"{source}: {key} is {value!r}, wanted {what}")
    return options


def _tower_config(options: dict, defaults: dict, source: str, projection: int | None) -> TowerConfig:
    o = defaults | options
    o.pop("projection_dim", None)  # without effect where the caller says so, and checked by it where it has one
    _checked(o, source)
    sizes = {
        "width": o["hidden_size"],
        "hidden": o["intermediate_size"],
        "depth": o["num_hidden_layers"],
        "heads": o["num_attention_heads"],
        "activation": o["hidden_act"],
        "epsilon": o["layer_norm_eps"],
        "projection": projection,
    }
    try:
        if defaults is _VISION_DEFAULTS:
            return CLIPVisionConfig(image_size=o["image_size"], patch_size=o["patch_size"], **sizes)
        return CLIPTextConfig(
            vocab=o["vocab_size"], positions=o["max_position_embeddings"], eos_token_id=o["eos_token_id"], **sizes
        )
    except ValueError as error:
        raise WeightsError(f"{source}: {error}") from None


def _tower_options(config_json: dict, name: str, defaults: dict) -> dict:
    """The options of one tower in the `config.json` of both; `NAME_dict` is an older way to state them, and wins."""
    options = config_json.get(name) or {}
    older = config_json.get(f"{name}_dict")
    # transformers fills the older form up with defaults before it lays it over the other, so they win as well.
    return options if older is None else options | defaults | older


def config_from_json(config_json: dict) -> CLIPConfig:
    """Reads the `config.json` of a `CLIPModel`.

    Raises:
      WeightsError: on options that the module does not implement.
    """
    top = _checked({"projection_dim": _PROJECTION_DEFAULT} | config_json, "config.json")
    projection = top["projection_dim"]  # the towers' own values have no effect in a CLIPModel
    vision = _tower_options(config_json, "vision_config", _VISION_DEFAULTS)
    text = _tower_options(config_json, "text_config", _TEXT_DEFAULTS)
    return CLIPConfig(
        _tower_config(vision, _VISION_DEFAULTS, "vision_config", projection),
        _tower_config(text, _TEXT_DEFAULTS, "text_config", projection),
        projection,
    )


def _tower_from_json(config_json: dict, name: str, defaults: dict, projected: bool) -> TowerConfig:
    """Reads the `config.json` of one tower, or its part in that of both."""
    options = config_json.get(name, config_json)
    projection = _checked(defaults | options, "config.json")["projection_dim"] if projected else None
    return _tower_config(options, defaults, "config.json", projection)


def _tower_to_json(config: TowerConfig) -> dict:
    options = {
        "attention_dropout": 0.0,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "layer_norm_eps": config.epsilon,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.depth,
    }
    if config.projection is not None:
        options["projection_dim"] = config.projection
    if isinstance(config, CLIPVisionConfig):
        own = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": 3}
        return options | own | {"model_type": "clip_vision_model"}
    own = {"eos_token_id": config.eos_token_id, "max_position_embeddings": config.positions, "vocab_size": config.vocab}
    own |= {"bos_token_id": config.vocab - 2}  # start and end of text are the last two
    return options | own | {"model_type": "clip_text_model"}


def config_to_json(config: CLIPConfig) -> dict:
    """Writes the `config.json` of a `CLIPModel`."""
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection,
        "text_config": _tower_to_json(config.text),
        "vision_config": _tower_to_json(config.vision),
    }


# keys


def _encoder_table(path: str, key: str, config: TowerConfig) -> list[Entry]:
    numbers, layer, published = range(config.depth), f"{path}layers", f"{key}encoder.layers.{{}}"
    heads = {"kernel": ("weight", fused(config.heads)), "bias": ("bias", fused_bias(config.heads))}
    entries = []
    for name in "qkv":
        entries += module(f"{layer}/attn/{name}", f"{published}.self_attn.{name}_proj", heads, numbers)
    entries += linear(f"{layer}/attn/out", f"{published}.self_attn.out_proj", layers=numbers)
    entries += linear(f"{layer}/mlp/up", f"{published}.mlp.fc1", layers=numbers)
    entries += linear(f"{layer}/mlp/down", f"{published}.mlp.fc2", layers=numbers)
    entries += norm(f"{layer}/norm1", f"{published}.layer_norm1", layers=numbers)
    return entries + norm(f"{layer}/norm2", f"{published}.layer_norm2", layers=numbers)


def _vision_table(config: CLIPVisionConfig, path: str = "") -> list[Entry]:
    key = "" if config.projection is None else "vision_model."
    entries = [
        Entry(f"{path}class_token", f"{key}embeddings.class_embedding"),
        Entry(f"{path}patch/kernel", f"{key}embeddings.patch_embedding.weight", patch(3, config.patch_size)),
        Entry(f"{path}positions", f"{key}embeddings.position_embedding.weight"),
        *norm(f"{path}norm_pre", f"{key}pre_layrnorm"),  # misspelt in the published layout
        *_encoder_table(path, key, config),
        *norm(f"{path}norm_post", f"{key}post_layernorm"),
    ]
    if config.projection is not None:
        entries.append(Entry(f"{path}projection/kernel", "visual_projection.weight", LINEAR))
    return entries


def _text_table(config: CLIPTextConfig, path: str = "") -> list[Entry]:
    key = "" if config.projection is None else "text_model."
    entries = [
        Entry(f"{path}tokens", f"{key}embeddings.token_embedding.weight"),
        Entry(f"{path}positions", f"{key}embeddings.position_embedding.weight"),
        *_encoder_table(path, key, config),
        *norm(f"{path}norm_post", f"{key}final_layer_norm"),
    ]
    if config.projection is not None:
        entries.append(Entry(f"{path}projection/kernel", "text_projection.weight", LINEAR))
    return entries


def table(config: CLIPConfig) -> list[Entry]:
    """Entries of a `CLIPModel`."""
    return [
        *_vision_table(config.vision, "vision/"),
        *_text_table(config.text, "text/"),
        Entry("logit_scale", "logit_scale"),
    ]


def canonical(tensors: Tensors, config: CLIPConfig | None = None) -> Tensors:
    """Brings a whole CLIP in any published layout to the keys of transformers, and drops position counters."""
    del config
    if any(".resblocks." in key for key in tensors):
        tensors = _from_openai(tensors)
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("embeddings.position_ids")}


def _canonical_tower(tensors: Tensors, config: TowerConfig) -> Tensors:
    """As `canonical`, for one tower; from a checkpoint of both it takes its own part."""
    vision = isinstance(config, CLIPVisionConfig)
    own, other = ("vision_model.", "text_model.") if vision else ("text_model.", "vision_model.")
    head, other_head = (
        ("visual_projection.", "text_projection.") if vision else ("text_projection.", "visual_projection.")
    )
    unwanted = (other, other_head, "logit_scale") + ((head,) if config.projection is None else ())
    kept = {key: tensor for key, tensor in canonical(tensors).items() if not key.startswith(unwanted)}
    if config.projection is not None:
        return kept
    # transformers 5 writes a tower without projection bare; older versions, so most published files, with its prefix.
    return {key.removeprefix(own): tensor for key, tensor in kept.items()}


# OpenAI's layout

_KEPT_POSITIONS = 20  # LongCLIP trains the table behind these; `positional_embedding_res` counts from there on

_OPENAI_KEYS = {
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_OPENAI_LAYER_KEYS = {
    "attn.out_proj.": "self_attn.out_proj.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_OPENAI_LAYER = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_OPENAI_SIZES = ("input_resolution", "context_length", "vocab_size")  # single numbers beside the weights


def _from_openai(tensors: Tensors) -> dict[str, Tensor]:
    """Renames, transposes and splits; an unknown key stays, and is reported as unexpected by whoever loads."""
    tensors = {key: tensor for key, tensor in tensors.items() if key not in _OPENAI_SIZES}
    if "positional_embedding_res" in tensors:
        stretched = tensors.pop("positional_embedding_res")
        tensors["positional_embedding"] = _joined_positions(tensors.get("positional_embedding"), stretched)
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer = _OPENAI_LAYER.fullmatch(key)
        if layer is None:
            flipped = key in ("visual.proj", "text_projection")
            result[_renamed(key, _OPENAI_KEYS)] = _transposed(tensor) if flipped else tensor
            continue
        tower = "vision_model" if layer[1] else "text_model"
        prefix, rest = f"{tower}.encoder.layers.{layer[2]}", layer[3]
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            size, kind = tensor.shape[0] // 3, rest.removeprefix("attn.in_proj_")
            for i, name in enumerate("qkv"):
                result[f"{prefix}.self_attn.{name}_proj.{kind}"] = tensor.rows(i * size, (i + 1) * size)
        else:
            result[f"{prefix}.{_renamed(rest, _OPENAI_LAYER_KEYS)}"] = tensor
    return result


def _renamed(key: str, names: Mapping[str, str]) -> str:
    if key in names:
        return names[key]
    for start, new in names.items():
        if start.endswith(".") and key.startswith(start):
            return new + key.removeprefix(start)
    return key


def _transposed(tensor: Tensor) -> Tensor:
    return dataclasses.replace(tensor, shape=tensor.shape[::-1], read=lambda: tensor.read().T)


def _joined_positions(first: Tensor | None, rest: Tensor) -> Tensor:
    """LongCLIP's position table: frozen positions from one table, trained ones from the other."""
    if first is None or (first.shape, first.dtype) != (rest.shape, rest.dtype):
        got = "none" if first is None else f"{first.dtype}{list(first.shape)}"
        raise WeightsError(
            f"{rest.file}: positional_embedding: got {got}, "
            f"wanted {rest.dtype}{list(rest.shape)} as positional_embedding_res"
        )
    return dataclasses.replace(
        first, read=lambda: np.concatenate([first.read()[:_KEPT_POSITIONS], rest.read()[_KEPT_POSITIONS:]])
    )


def config_from_openai(tensors: Tensors) -> CLIPConfig:
    """Deduces the sizes of a CLIP in OpenAI's layout: heads are 64 wide, the activation is quick_gelu, and a text ends
    at its highest token id.

    Args:
      tensors: as `checkpoint.open_checkpoint` lists them.

    Raises:
      WeightsError: if a key is missing, or the shapes are not those of a CLIP with a vision transformer.
    """

    def shape(key: str, rank: int) -> tuple[int, ...]:
        got = tensors[key].shape if key in tensors else None
        if got is None or len(got) != rank:
            what = "missing" if got is None else f"of shape {list(got)}"
            raise WeightsError(f"{key} is {what}, wanted a tensor of rank {rank}, as in OpenAI's CLIP with a ViT")
        return got

    def tower(prefix: str, width: int) -> dict[str, Any]:
        start = f"{prefix}transformer.resblocks."
        hidden = shape(f"{start}0.mlp.c_fc.weight", 2)[0]
        if width % 64:
            raise WeightsError(f"{prefix or 'text '}width is {width}, wanted a multiple of 64, the width of a head")
        depth = len({key.removeprefix(start).split(".")[0] for key in tensors if key.startswith(start)})
        return {"width": width, "hidden": hidden, "depth": depth, "heads": width // 64}

    width, _, side, _ = shape("visual.conv1.weight", 4)
    tokens = shape("visual.positional_embedding", 2)[0]
    grid = math.isqrt(tokens - 1)
    if grid**2 + 1 != tokens:
        raise WeightsError(f"visual.positional_embedding has {tokens} rows, wanted one more than a square number")
    projection = shape("visual.proj", 2)[1]
    if shape("text_projection", 2)[1] != projection:
        got = shape("text_projection", 2)[1]
        raise WeightsError(f"text_projection is onto {got} axes, wanted {projection} as visual.proj")
    vocab, text_width = shape("token_embedding.weight", 2)
    vision = CLIPVisionConfig(image_size=grid * side, patch_size=side, projection=projection, **tower("visual.", width))
    text = CLIPTextConfig(
        vocab=vocab,
        positions=shape("positional_embedding", 2)[0],
        eos_token_id=LEGACY_EOS,
        projection=projection,
        **tower("", text_width),
    )
    return CLIPConfig(vision, text, projection)


def open_openai_clip(path: str | os.PathLike) -> tuple[CLIPConfig, Tensors]:
    """Opens a CLIP or LongCLIP in OpenAI's layout, a safetensors file without `config.json`.

    `pretrained.from_tensors(MODEL, *open_openai_clip(path), source=path)` loads both towers;
    `from_tensors(VISION_WITH_PROJECTION, config.vision, VISION_WITH_PROJECTION.canonical(tensors, config.vision), ...)`
    the image tower alone.

    Returns:
      Sizes, and the tensors under the keys of `table`.

    Raises:
      WeightsError: see `config_from_openai`.
    """
    tensors = checkpoint.open_checkpoint(path)
    try:
        config = config_from_openai(tensors)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return config, canonical(tensors, config)


# architectures

MODEL = Architecture(
    name="CLIPModel",
    config_class=CLIPConfig,
    module=clip.CLIP,
    example_inputs=clip.example_inputs,
    logical_axes=clip.LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    file_stem=checkpoint.MODEL,
    canonical=canonical,
)


def _vision(name: str, projected: bool) -> Architecture:
    return Architecture(
        name=name,
        config_class=CLIPVisionConfig,
        module=clip.CLIPVision,
        example_inputs=clip.vision_inputs,
        logical_axes=clip.LOGICAL_AXES,
        config_from_json=functools.partial(
            _tower_from_json, name="vision_config", defaults=_VISION_DEFAULTS, projected=projected
        ),
        config_to_json=lambda config: {"architectures": [name]} | _tower_to_json(config),
        table=_vision_table,
        file_stem=checkpoint.MODEL,
        canonical=_canonical_tower,
    )


def _text(name: str, projected: bool) -> Architecture:
    return Architecture(
        name=name,
        config_class=CLIPTextConfig,
        module=clip.CLIPText,
        example_inputs=clip.text_inputs,
        logical_axes=clip.LOGICAL_AXES,
        config_from_json=functools.partial(
            _tower_from_json, name="text_config", defaults=_TEXT_DEFAULTS, projected=projected
        ),
        config_to_json=lambda config: {"architectures": [name]} | _tower_to_json(config),
        table=_text_table,
        file_stem=checkpoint.MODEL,
        canonical=_canonical_tower,
    )


VISION_WITH_PROJECTION = _vision("CLIPVisionModelWithProjection", projected=True)
TEXT_WITH_PROJECTION = _text("CLIPTextModelWithProjection", projected=True)
VISION = _vision("CLIPVisionModel", projected=False)
TEXT = _text("CLIPTextModel", projected=False)

ARCHITECTURES = (MODEL, VISION_WITH_PROJECTION, TEXT_WITH_PROJECTION, VISION, TEXT)
