"""How many items go into a batch, where they go, and what makes each of them random on its own."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from PIL import Image

from uae_jax.data.vision_inputs import VisionInputConfig
from uae_jax.models.autoencoder_kl import AutoencoderKLConfig
from uae_jax.models.qwen2_5_vl.config import Qwen2_5_VLConfig
from uae_jax.models.sd3 import SD3Config
from uae_jax.parallel import global_arrays, sharding
from uae_jax.sampling import painting


@dataclasses.dataclass(frozen=True)
class ItemKeys:
    """A PRNG key per item, made of the seed and the item's number, whatever batch it is in.

    Attributes:
      seed: of the call.
      first: number of the call's first item.
    """

    seed: int
    first: int = 0

    def __call__(self, places: Sequence[int]) -> jax.Array:
        return _fold(jax.random.key(self.seed), np.asarray(places, np.uint32) + np.uint32(self.first))


@jax.jit
def _fold(key: jax.Array, numbers: jax.Array) -> jax.Array:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def as_list(items: Any) -> list[Any]:
    """One item or many -> a list; an array of two or three axes is one image."""
    single = isinstance(items, (str, bytes, os.PathLike, Image.Image)) or (
        isinstance(items, (np.ndarray, jax.Array)) and items.ndim in (2, 3)
    )
    return [items] if single else list(items)


def chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    """Parts of at most `size`."""
    return (list(items[start : start + size]) for start in range(0, len(items), size))


def rows_within(budget: float, bytes_per_row: float) -> int:
    """The largest power of two of rows that the budget holds, at least one."""
    rows = max(int(budget // bytes_per_row), 1)
    return 1 << (rows.bit_length() - 1)


def caption_bytes(config: Qwen2_5_VLConfig, inputs: VisionInputConfig, new_tokens: int, itemsize: int) -> float:
    """What one caption takes beside the weights: its cache, twice, logits, and the vision tower's attention."""
    patches = inputs.max_pixels / inputs.patch**2
    slots = patches / config.vision.patches_per_token + 256 + new_tokens
    cache = 2 * config.text.depth * slots * config.text.kv_heads * config.text.head_width * itemsize
    attention = 8 * patches**2 * config.vision.heads
    return 2 * cache + 12 * config.text.vocab + attention + 64 * patches * config.vision.width


def decoding_copy_bytes(encoder_params: Any) -> int:
    """What a batch of captions takes once: decoding takes the stack of language layers apart, which copies it."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(encoder_params["language"]["layers"]))


def paint_bytes(
    decoder: SD3Config, vae: AutoencoderKLConfig, latent: tuple[int, int, int], guided: bool, flash: bool
) -> float:
    """What one painting takes beside the weights: the VAE's widest activations, or the transformer's.

    Args:
      decoder, vae: sizes.
      latent: (h, w, Z).
      guided: whether two branches run.
      flash: whether attention logits are never held.
    """
    pixels = min(latent[0] * latent[1] * vae.downsampling**2, painting.TILE**2)
    tokens = latent[0] * latent[1] / decoder.patch_size**2 + 512
    logits = 0 if flash else 8 * tokens**2 * decoder.num_heads
    transformer = (2 if guided else 1) * (logits + 64 * tokens * decoder.width)
    return max(6 * 4 * pixels * vae.block_out_channels[0], transformer)


def place(leaf: Any, mesh: Mesh | None, axis: int = 0) -> Any:
    """Puts an array on the mesh, split over its rows (`axis`) where they divide; each process gives the whole."""
    if mesh is None:
        return leaf
    names = ["batch" if i == axis else None for i in range(leaf.ndim)]
    return global_arrays.put(leaf, NamedSharding(mesh, sharding.partition_spec(leaf.shape, names, mesh)))
