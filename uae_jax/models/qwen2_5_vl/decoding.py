"""The language model one token at a time: the inner step of caption sampling.

A scan over stacked weights would copy every layer's slice and its cache once per token, and decoding does little else
than read weights. So the stack is taken apart once per rollout, each layer keeps a cache of its own that is updated in
place, and the layers stand one after another in the program.

Letters: B rows, S slots of the cache, L layers, D width, K key/value heads, H head width, V vocabulary.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from uae_jax.models.qwen2_5_vl.language import DecoderLayer, KVCache, mrope_angles
from uae_jax.models.qwen2_5_vl.model import Qwen2_5_VL

Array = jax.Array
Variables = dict[str, Any]
LayerCaches = tuple[tuple[Array, Array], ...]  # per layer: keys and values, [B, S, K, H] each


@flax.struct.dataclass
class Decoder:
    """The variables of the language model, its layers apart.

    Attributes:
      layers: per layer, its variables (parameters, and adapters if there are any).
      rest: the variables of the whole model, from which embedding, norm and head are read.
    """

    layers: tuple[Variables, ...]
    rest: Variables


def unstack(variables: Variables, depth: int) -> Decoder:
    """Takes the stack of decoder layers apart.

    Args:
      variables: of `Qwen2_5_VL`: {"params": ..., and maybe "lora": ...}.
      depth: L.
    """
    stacks = {
        name: tree["language"]["layers"] for name, tree in variables.items() if "layers" in tree.get("language", {})
    }
    layers = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacks) for i in range(depth))
    return Decoder(layers, variables)


def split_cache(cache: KVCache) -> LayerCaches:
    """Takes a stacked cache apart, one pair per layer."""
    return tuple((cache.keys[i], cache.values[i]) for i in range(cache.keys.shape[0]))


def decode_step(
    model: Qwen2_5_VL,
    decoder: Decoder,
    caches: LayerCaches,
    token: Array,
    position: Array,
    slot: Array,
    visible: Array,
) -> tuple[Array, LayerCaches]:
    """Feeds one token per row and scores the next.

    Args:
      model: the module whose variables `decoder` holds.
      decoder: see `unstack`.
      caches: keys and values so far.
      token: i32[B].
      position: i32[B], the token's number in time, row and column alike (it is text).
      slot: i32[], where its keys and values go, the same for all rows.
      visible: bool[B, S], the slots that the token sees, its own among them.

    Returns:
      f32[B, V] logits, and the caches with the token in them.
    """
    text = model.config.text
    x = model.apply(decoder.rest, token[:, None], method="embed")  # [B, 1, D]
    angles = mrope_angles(jnp.broadcast_to(position[None, :, None], (3, *position.shape, 1)), text)
    layer = DecoderLayer(text, model.runtime)
    mask = visible[:, None, None, :]
    updated = []
    for variables, cache in zip(decoder.layers, caches, strict=True):
        x, cache = layer.apply(variables, x, cache, angles, None, slot, mask)
        updated.append(cache)
    logits = model.apply(decoder.rest, x, method="finish")
    return logits[:, 0], tuple(updated)
