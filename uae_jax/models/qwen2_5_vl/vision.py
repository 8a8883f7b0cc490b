"""The vision tower: patches in, one token per square of merged patches out.

Most layers attend inside windows of the image, a few over the whole of it. The residual stream stays in the
processor's order throughout; a window layer gathers queries, keys and values into windows and its result back.

Letters: B batch, P patches, M merged tokens, W windows, S patches of a window, D width, N heads, H head width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.models.attention import attention
from uae_jax.models.layers import ACTIVATIONS, Linear, residual_init, rms_norm, rotate
from uae_jax.models.qwen2_5_vl.config import VisionConfig
from uae_jax.models.qwen2_5_vl.positions import ImagePatches, rotary_frequencies
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import constrain

Array = jax.Array

_EPSILON = 1e-6  # of every norm in the tower; no config states it


class VisionTower(nn.Module):
    """Patch embedding, layers, merger."""

    config: VisionConfig
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, images: ImagePatches) -> Array:  # -> [B, M, out_width]
        cfg, run = self.config, self.runtime
        x = Linear(cfg.width, use_bias=False, runtime=run, name="patch_embed")(images.patches)
        x = constrain(x, "batch", "length", None)  # [B, P, D]
        frequencies = rotary_frequencies(cfg.head_width // 2, cfg.rope_theta)
        angles = images.position[..., None].astype(jnp.float32) * frequencies  # [B, P, 2, H/4]
        angles = angles.reshape(*angles.shape[:2], cfg.head_width // 2)
        is_full = jnp.asarray(np.isin(np.arange(cfg.depth), cfg.full_attention_layers))
        layers = scan_layers(VisionLayer, cfg.depth, run, in_axes=(0, nn.broadcast, nn.broadcast))
        x, _ = layers(cfg, run, name="layers")(x, is_full, angles, images.replace(patches=None))
        merged = PatchMerger(cfg, run, name="merger")(x)
        self.sow("intermediates", "merged", merged)
        return merged


class VisionLayer(nn.Module):
    """One layer; `is_full` says whether it attends over the image or in windows."""

    config: VisionConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array, is_full: Array, angles: Array, images: ImagePatches) -> tuple[Array, None]:
        cfg, run = self.config, self.runtime
        attn = VisionAttention(cfg, run, name="attn")
        mlp = GatedMLP(cfg.intermediate, cfg.activation, True, run, residual_init(cfg.depth), name="mlp")
        x = x + attn(rms_norm(run, _EPSILON, name="attn_norm")(x), is_full, angles, images)
        x = x + mlp(rms_norm(run, _EPSILON, name="mlp_norm")(x))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class VisionAttention(nn.Module):
    """Self-attention among the patches of an image, or of a window of it."""

    config: VisionConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array, is_full: Array, angles: Array, images: ImagePatches) -> Array:
        cfg, run = self.config, self.runtime
        qkv = Linear((3, cfg.width), runtime=run, name="qkv")(x)
        qkv = qkv.reshape(*x.shape[:2], 3, cfg.heads, cfg.head_width)
        q, k, v = (qkv[:, :, i] for i in range(3))  # [B, P, N, H]
        q, k = rotate(q, angles), rotate(k, angles)

        def full(q: Array, k: Array, v: Array) -> Array:
            return attention(q, k, v, segment_ids=images.segment, kernel=run.attention)

        def windowed(q: Array, k: Array, v: Array) -> Array:
            return window_attention(q, k, v, images, run.attention)

        out = jax.lax.cond(is_full, full, windowed, q, k, v)
        last = Linear(cfg.width, runtime=run, kernel_init=residual_init(cfg.depth), name="proj")
        return last(out.reshape(x.shape))


def window_attention(q: Array, k: Array, v: Array, images: ImagePatches, kernel: str) -> Array:
    """Attends inside windows only.

    Empty places of a window are a segment of their own, so that no softmax is over nothing; padding patches get the
    finite result of place 0, which nobody reads.

    Args:
      q, k, v: [B, P, N, H] in the processor's order.
      images: the window plan.
      kernel: see `attention`.

    Returns:
      [B, P, N, H] in the same order.
    """
    batch, count, size = images.window.shape
    place = jnp.maximum(images.window, 0).reshape(batch, count * size)

    def take(x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index[:, :, None, None], axis=1)

    def split(x: Array) -> Array:  # [B, P, N, H] -> [B*W, S, N, H]
        return take(x, place).reshape(batch * count, size, *x.shape[2:])

    filled = (images.window >= 0).astype(jnp.int32).reshape(batch * count, size)
    out = attention(split(q), split(k), split(v), segment_ids=filled, kernel=kernel)
    return take(out.reshape(batch, count * size, *q.shape[2:]), images.slot)


class PatchMerger(nn.Module):
    """Joins each square of patches, which stand side by side, into one token of the language model's width."""

    config: VisionConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, P, D] -> [B, M, out_width]
        cfg, run = self.config, self.runtime
        width = cfg.width * cfg.patches_per_token
        x = rms_norm(run, _EPSILON, name="norm")(x).reshape(x.shape[0], -1, width)
        x = ACTIVATIONS["gelu"](Linear(width, runtime=run, name="up")(x))
        return Linear(cfg.out_width, runtime=run, name="down")(x)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)); `down_init` initialises the last kernel."""

    intermediate: int
    activation: str
    use_bias: bool
    runtime: Runtime
    down_init: Callable

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        gate = Linear(self.intermediate, self.use_bias, self.runtime, name="gate")(x)
        up = Linear(self.intermediate, self.use_bias, self.runtime, name="up")(x)
        hidden = constrain(ACTIVATIONS[self.activation](gate) * up, "batch", "length", "act_mlp")
        return Linear(x.shape[-1], self.use_bias, self.runtime, self.down_init, name="down")(hidden)
