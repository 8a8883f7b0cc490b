"""Qwen2.5-VL: the vision tower, the language model, and the positions of both."""

from uae_jax.models.qwen2_5_vl.config import (
    Qwen2_5_VLConfig,
    TextConfig,
    VisionConfig,
    qwen2_5_vl_3b,
    qwen2_5_vl_7b,
    small,
    tiny,
)
from uae_jax.models.qwen2_5_vl.language import KVCache, cache_mask, empty_cache
from uae_jax.models.qwen2_5_vl.model import LOGICAL_AXES, Qwen2_5_VL, example_inputs
from uae_jax.models.qwen2_5_vl.positions import (
    ImagePatches,
    ImagePlan,
    image_index,
    mrope_positions,
    pack_images,
    plan_images,
)

__all__ = [
    "LOGICAL_AXES",
    "ImagePatches",
    "ImagePlan",
    "KVCache",
    "Qwen2_5_VL",
    "Qwen2_5_VLConfig",
    "TextConfig",
    "VisionConfig",
    "cache_mask",
    "empty_cache",
    "example_inputs",
    "image_index",
    "mrope_positions",
    "pack_images",
    "plan_images",
    "qwen2_5_vl_3b",
    "qwen2_5_vl_7b",
    "small",
    "tiny",
]
