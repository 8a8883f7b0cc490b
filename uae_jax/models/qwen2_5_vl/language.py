"""The language model: Qwen2.5's decoder with rotary positions in time, row and column (M-RoPE).

Letters: B batch, T tokens, S slots of the cache, L layers, D width, N query heads, K key/value heads, H head width.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from uae_jax.models.attention import attention
from uae_jax.models.layers import Linear, residual_init, rms_norm, rotate
from uae_jax.models.qwen2_5_vl.config import TextConfig
from uae_jax.models.qwen2_5_vl.positions import rotary_frequencies
from uae_jax.models.qwen2_5_vl.vision import GatedMLP
from uae_jax.models.runtime import DType, Runtime, scan_layers
from uae_jax.parallel.sharding import constrain

Array = jax.Array
Segments = Array | tuple[Array, Array] | None


@flax.struct.dataclass
class KVCache:
    """Keys (already turned by their positions) and values of all layers.

    Attributes:
      keys, values: [L, B, S, K, H].
    """

    keys: Array
    values: Array


def empty_cache(config: TextConfig, batch: int, length: int, dtype: DType = jnp.float32) -> KVCache:
    """Makes a cache of `length` slots, all zero."""
    shape = (config.depth, batch, length, config.kv_heads, config.head_width)
    cache = KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
    return jax.tree.map(lambda x: constrain(x, None, "batch", None, "act_heads", None), cache)


def cache_mask(valid: Array, cache_index: Array | int, length: int) -> Array:
    """Says which slots each new token sees: those up to its own that hold a real token.

    Args:
      valid: bool[B, S], False at the slots of padding; the slots of the new tokens count as well.
      cache_index: slot of the first new token.
      length: T, new tokens.

    Returns:
      bool[B, 1, T, S].
    """
    slots = jnp.arange(valid.shape[1])
    order = slots[None, :] <= cache_index + jnp.arange(length)[:, None]  # [T, S]
    return (order[None] & valid[:, None, :])[:, None]


class LanguageModel(nn.Module):
    """Token embedding, decoder layers, head."""

    config: TextConfig
    tied: bool
    runtime: Runtime = Runtime()

    def setup(self):
        cfg, run = self.config, self.runtime
        axes = (0, *(nn.broadcast,) * 4)
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (cfg.vocab, cfg.width), run.param_dtype)
        self.layers = scan_layers(DecoderLayer, cfg.depth, run, in_axes=axes)(cfg, run)
        self.norm = rms_norm(run, cfg.epsilon)
        if not self.tied:
            self.lm_head = Linear(cfg.vocab, use_bias=False, runtime=run, out_dtype=jnp.float32)

    def embed(self, tokens: Array) -> Array:  # i32[B, T] -> [B, T, D]
        x = jnp.take(self.embedding, tokens, axis=0).astype(self.runtime.dtype)
        return constrain(x, "batch", "length", None)

    def __call__(
        self,
        embeddings: Array,
        positions: Array,
        segment_ids: Segments = None,
        cache: KVCache | None = None,
        cache_index: Array | int = 0,
        mask: Array | None = None,
    ) -> tuple[Array, KVCache | None]:
        """Runs the layers and the final norm; arguments as `Qwen2_5_VL.hidden_states`."""
        angles = mrope_angles(positions, self.config)
        pair = None if cache is None else (cache.keys, cache.values)
        x = embeddings.astype(self.runtime.dtype)
        x, pair = self.layers(x, pair, angles, segment_ids, cache_index, mask)
        return self.norm(x), None if pair is None else KVCache(*pair)

    def logits(self, hidden: Array) -> Array:  # [B, T, D] -> f32[B, T, V]
        run = self.runtime
        if self.tied:
            hidden, table = hidden.astype(run.dtype), self.embedding.astype(run.dtype)
            out = jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)
        else:
            out = self.lm_head(hidden)
        return constrain(out, "batch", "length", "act_vocab")


class DecoderLayer(nn.Module):
    """Pre-norm self-attention and gated MLP."""

    config: TextConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array, cache: Any, angles: Array, segment_ids: Segments, cache_index: Any, mask: Any):
        cfg, run = self.config, self.runtime
        attn = SelfAttention(cfg, run, name="attn")
        mlp = GatedMLP(cfg.intermediate, cfg.activation, False, run, residual_init(cfg.depth), name="mlp")
        normed = rms_norm(run, cfg.epsilon, name="attn_norm")(x)
        out, cache = attn(normed, angles, segment_ids, cache, cache_index, mask)
        x = x + out
        x = x + mlp(rms_norm(run, cfg.epsilon, name="mlp_norm")(x))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, cache


class SelfAttention(nn.Module):
    """Causal grouped-query attention, with or without a cache."""

    config: TextConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        x: Array,
        angles: Array,
        segment_ids: Segments = None,
        cache: tuple[Array, Array] | None = None,
        cache_index: Array | int = 0,
        mask: Array | None = None,
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Attends among the new tokens, or with `mask` over the cache.

        Args:
          x: [B, T, D].
          angles: f32[B, T, H/2].
          segment_ids: see `attention`; unused with `mask`.
          cache: keys and values [B, S, K, H] so far; the new ones are written at `cache_index`.
          cache_index: slot of the first new token.
          mask: bool[B, 1, T, S], the slots that each new token sees. Without it the new tokens see each other only:
            the prefill of an empty cache, for which flash kernels need no mask.

        Returns:
          [B, T, D] and the updated cache.
        """
        cfg, run = self.config, self.runtime

        def project(name: str, heads: int) -> Array:
            y = Linear(heads * cfg.head_width, runtime=run, name=name)(x)
            return y.reshape(*x.shape[:2], heads, cfg.head_width)

        q = rotate(project("q", cfg.heads), angles)
        k = rotate(project("k", cfg.kv_heads), angles)
        v = project("v", cfg.kv_heads)
        if cache is not None:
            cache = tuple(_write(slots, new, cache_index) for slots, new in zip(cache, (k, v), strict=True))
        if mask is None:
            out = attention(q, k, v, causal=True, segment_ids=segment_ids, kernel=run.attention)
        elif cache is None:
            raise ValueError("mask is over the slots of a cache, but there is no cache; use segment_ids")
        else:
            keys, values = (slots.astype(q.dtype) for slots in cache)
            out = attention(q, keys, values, mask=mask, kernel=run.attention)
        out = out.reshape(*x.shape[:2], cfg.heads * cfg.head_width)
        last = Linear(cfg.width, use_bias=False, runtime=run, kernel_init=residual_init(cfg.depth), name="o")
        return last(out), cache


def mrope_angles(positions: Array, config: TextConfig) -> Array:
    """Turns positions i32[3, B, T] into angles f32[B, T, H/2]: sections of the frequencies take time, row, column."""
    frequencies = rotary_frequencies(config.head_width, config.rope_theta)
    parts, start = [], 0
    for number, size in enumerate(config.mrope_section):
        axis = positions[number % 3, :, :, None].astype(jnp.float32)
        parts.append(axis * frequencies[start : start + size])
        start += size
    return jnp.concatenate(parts, axis=-1)


def _write(slots: Array, new: Array, index: Array | int) -> Array:
    if new.shape[1] > slots.shape[1]:
        raise ValueError(f"cache has {slots.shape[1]} slots, wanted at least {new.shape[1]} for the new tokens")
    slots = jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), index, axis=1)
    return constrain(slots, "batch", None, "act_heads", None)
