"""SD3 / SD3.5 transformers as diffusers publishes them (`SD3Transformer2DModel`).

The position table is a buffer in the published file and decides where a patch believes to be. The reference models
were trained with tables that the published `config.json` does not determine, so it is read from the file and written
back, never recomputed.
"""

from typing import Any

from uae_jax.models import sd3
from uae_jax.models.sd3 import SD3Config, SD3Transformer
from uae_jax.weights.architecture import Architecture
from uae_jax.weights.checkpoint import DIFFUSION_MODEL
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.table import SAME, Entry, Layout, linear, module, norm, patch

NAME = "SD3Transformer2DModel"

# Published key -> (our field, what diffusers takes where the key is absent).
_SIZES = {
    "sample_size": ("sample_size", 128),
    "patch_size": ("patch_size", 2),
    "in_channels": ("in_channels", 16),
    "num_layers": ("num_layers", 18),
    "attention_head_dim": ("head_dim", 64),
    "num_attention_heads": ("num_heads", 18),
    "joint_attention_dim": ("context_dim", 4096),
    "pooled_projection_dim": ("pooled_dim", 2048),
    "pos_embed_max_size": ("pos_embed_max_size", 96),
}
_QK_NORMS = {None: False, "rms_norm": True}
_OTHERS = ("caption_projection_dim", "out_channels", "dual_attention_layers", "qk_norm")

# Our name -> published name, in a layer.
_JOINT = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "add_q": "add_q_proj",
    "add_k": "add_k_proj",
    "add_v": "add_v_proj",
    "add_o": "to_add_out",
}
_NORMS = {"norm_q": "norm_q", "norm_k": "norm_k", "norm_add_q": "norm_added_q", "norm_add_k": "norm_added_k"}


def config_from_json(config_json: dict) -> SD3Config:
    """Reads a published `config.json`.

    Raises:
      WeightsError: on a key or a value that the module does not implement.
    """
    unknown = sorted(key for key in config_json if not key.startswith("_") and key not in (*_SIZES, *_OTHERS))
    if unknown:
        raise WeightsError(f"{NAME}: unknown keys {', '.join(unknown)}, wanted only {', '.join((*_SIZES, *_OTHERS))}")
    sizes = {field: _size(key, config_json.get(key, default)) for key, (field, default) in _SIZES.items()}
    out_channels = config_json.get("out_channels", 16)
    qk_norm = config_json.get("qk_norm")
    if qk_norm not in _QK_NORMS:
        raise WeightsError(f"{NAME}: qk_norm is {qk_norm!r}, wanted one of {', '.join(map(repr, _QK_NORMS))}")
    dual = config_json.get("dual_attention_layers", ())
    if not isinstance(dual, list | tuple) or not all(type(i) is int for i in dual):
        raise WeightsError(f"{NAME}: dual_attention_layers is {dual!r}, wanted a list of layer numbers")
    try:
        config = SD3Config(
            **sizes,
            out_channels=sizes["in_channels"] if out_channels is None else _size("out_channels", out_channels),
            dual_attention_layers=tuple(dual),
            qk_norm=_QK_NORMS[qk_norm],
        )
    except ValueError as error:
        raise WeightsError(f"{NAME}: {error}") from None
    caption = config_json.get("caption_projection_dim", 1152)
    if caption != config.width:
        raise WeightsError(
            f"{NAME}: caption_projection_dim is {caption!r}, wanted {config.width}, num_attention_heads x "
            f"attention_head_dim: both streams meet in one attention"
        )
    return config


def _size(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise WeightsError(f"{NAME}: {key} is {value!r}, wanted a positive integer")
    return value


def config_to_json(config: SD3Config) -> dict:
    """Writes what diffusers' `from_pretrained` reads."""
    names = {qk: name for name, qk in _QK_NORMS.items()}
    return {
        "_class_name": NAME,
        **{key: getattr(config, field) for key, (field, _) in _SIZES.items()},
        "caption_projection_dim": config.width,
        "out_channels": config.out_channels,
        "dual_attention_layers": list(config.dual_attention_layers),
        "qk_norm": names[config.qk_norm],
    }


def table(config: SD3Config) -> list[Entry]:
    """One entry per parameter and for the position table."""
    proj = {"kernel": ("weight", patch(config.in_channels, config.patch_size)), "bias": ("bias", SAME)}
    entries = [
        Entry("pos_embed/table", "pos_embed.pos_embed", _position_table(config.pos_embed_max_size)),
        *module("pos_embed/proj", "pos_embed.proj", proj),
        *linear("context_embedder", "context_embedder"),
        *linear("out_adaln", "norm_out.linear"),
        *linear("proj_out", "proj_out"),
    ]
    for native, published in (("timestep_embedder", "timestep_embedder"), ("pooled_embedder", "text_embedder")):
        entries += linear(f"{native}/up", f"time_text_embed.{published}.linear_1")
        entries += linear(f"{native}/down", f"time_text_embed.{published}.linear_2")
    for run, (first, count, dual) in enumerate(config.runs):
        numbers = range(first, first + count)
        entries += _layer(config, f"layers_{run}", f"layers_adaln_{run}", "transformer_blocks.{}", dual, numbers)
    last = f"transformer_blocks.{config.num_layers - 1}"
    return entries + _layer(config, "last", "last_adaln", last, config.last_is_dual, None)


def _layer(config: SD3Config, path: str, adaln: str, key: str, dual: bool, numbers: range | None) -> list[Entry]:
    """Entries of a run of equal layers, or of the last layer where `numbers` is None."""
    last = numbers is None
    entries = [
        *linear(f"{adaln}/image", f"{key}.norm1.linear", layers=numbers),
        *linear(f"{adaln}/context", f"{key}.norm1_context.linear", layers=numbers),
    ]
    for attn in ("attn", "attn2") if dual else ("attn",):
        for native, published in _JOINT.items():
            absent = attn == "attn2" and native.startswith("add_")
            if not absent and not (last and native == "add_o"):
                entries += linear(f"{path}/{attn}/{native}", f"{key}.{attn}.{published}", layers=numbers)
        for native, published in _NORMS.items() if config.qk_norm else ():
            if not (attn == "attn2" and native.startswith("norm_add_")):
                entries += norm(f"{path}/{attn}/{native}", f"{key}.{attn}.{published}", bias=False, layers=numbers)
    for ff in ("ff",) if last else ("ff", "ff_context"):
        entries += linear(f"{path}/{ff}/up", f"{key}.{ff}.net.0.proj", layers=numbers)
        entries += linear(f"{path}/{ff}/down", f"{key}.{ff}.net.2", layers=numbers)
    return entries


def _position_table(side: int) -> Layout:  # [1, G*G, D] <-> [G, G, D]
    return Layout(lambda w: w.reshape(side, side, w.shape[-1]), lambda w: w.reshape(1, side * side, w.shape[-1]))


ARCHITECTURE = Architecture(
    name=NAME,
    config_class=SD3Config,
    module=SD3Transformer,
    example_inputs=sd3.example_inputs,
    logical_axes=sd3.LOGICAL_AXES,
    config_from_json=config_from_json,
    config_to_json=config_to_json,
    table=table,
    file_stem=DIFFUSION_MODEL,
)
