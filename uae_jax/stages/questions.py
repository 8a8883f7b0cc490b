"""A question about each image of a batch: packed on the host, cut into patches on the device.

Letters: B images, T tokens, P patches, H/W height and width.
"""

import functools
from typing import Any

import jax
import numpy as np

from uae_jax.data import device_patches
from uae_jax.data.prompts import PromptBuilder
from uae_jax.models.qwen2_5_vl.positions import ImagePatches, ImagePlan, image_index, mrope_positions, plan_images
from uae_jax.models.qwen2_5_vl.prompts import Prompts

Array = jax.Array
PLAN = ("position", "segment", "window", "slot")


def ask(prompts: PromptBuilder, question: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Asks the same of images of one size, so no row is padded.

    Args:
      prompts: tokenizer, template and image settings.
      question: what is asked.
      pixels: u8[B, H, W, 3].

    Returns:
      "asked/seen" u8[B, H', W', 3], what the encoder sees, and the rest of `Prompts` under "asked/...".
    """
    config = prompts.config
    seen = device_patches.fitted(pixels, prompts.vision_inputs)
    grid = grid_of(seen, config.vision.patch_size)
    merged = grid[1] * grid[2] // config.vision.patches_per_token
    tokens = prompts.encode_user(question, images=1)
    row = [t for token in tokens for t in [token] * (merged if token == config.image_token_id else 1)]
    rows = np.tile(np.asarray(row, np.int32), (len(pixels), 1))
    grids = ((grid,),) * len(pixels)
    positions, following = mrope_positions(rows, grids, np.ones(rows.shape, bool), config)
    plan = planned(grids, config.vision)
    asked = {
        "seen": seen,
        "tokens": rows,
        "positions": np.ascontiguousarray(positions.swapaxes(0, 1)),
        "next_position": following,
        "image_index": image_index(rows, grids, config),
        **{name: getattr(plan, name) for name in PLAN},
    }
    return {f"asked/{name}": value for name, value in asked.items()}


def prompts_of(batch: dict[str, Array], prompts: PromptBuilder) -> Prompts:
    """What `ask` packed, as the model takes it. Pure."""
    own = {name.removeprefix("asked/"): value for name, value in batch.items() if name.startswith("asked/")}
    patches = device_patches.patches_of(own["seen"], prompts.vision_inputs)
    return Prompts(
        tokens=own["tokens"],
        valid=jax.numpy.ones(own["tokens"].shape, bool),
        positions=own["positions"].swapaxes(0, 1),
        next_position=own["next_position"],
        images=ImagePatches(patches, *(own[name] for name in PLAN)),
        image_index=own["image_index"],
    )


def grid_of(pixels: np.ndarray, patch: int) -> tuple[int, int, int]:
    """(1, h, w) in patches of u8[B, H, W, 3]."""
    return (1, pixels.shape[1] // patch, pixels.shape[2] // patch)


@functools.lru_cache(maxsize=64)
def planned(grids: tuple, vision: Any) -> ImagePlan:
    """`plan_images`, kept for batches to come."""
    return plan_images(grids, vision)
