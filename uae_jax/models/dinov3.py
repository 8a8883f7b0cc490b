"""DINOv3 vision transformer (Siméoni et al. 2025, arXiv 2508.10104).

Letters: B batch, H/W image height and width, P patches, R registers, T = 1 + R + P tokens, D width, F hidden width,
N heads, K head width.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.attention import attention
from uae_jax.models.layers import ACTIVATIONS, Linear, layer_norm, patches, residual_init, rotate
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DINOv3Config:
    """Sizes; the defaults are those shared by all published models.

    Attributes:
      width: D.
      hidden: F.
      depth: number of layers.
      heads: N.
      patch_size: side of a patch, pixels.
      registers: R, tokens without an image region.
      image_size: side of the images that it is published for; any multiples of `patch_size` will do.
      activation: a name in `ACTIVATIONS`.
      gated: the hidden layer is gated, act(gate x) * up x.
      query_bias, key_bias, value_bias, out_bias, mlp_bias: which linear layers have a bias.
      rope_theta: base of the rotary wavelengths.
      epsilon: of the layer norms.
      layer_scale: initial value of the residual branches' scales.
    """

    width: int
    hidden: int
    depth: int
    heads: int
    patch_size: int = 16
    registers: int = 4
    image_size: int = 224
    activation: str = "gelu"
    gated: bool = False
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    rope_theta: float = 100.0
    epsilon: float = 1e-5
    layer_scale: float = 1.0

    def __post_init__(self):
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width is {self.width}, wanted a multiple of {4 * self.heads}: "
                f"the rotary angles split each of the {self.heads} heads into four"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is {self.activation!r}, wanted one of {', '.join(ACTIVATIONS)}")

    @classmethod
    def large(cls) -> "DINOv3Config":
        """ViT-L/16, facebook/dinov3-vitl16-pretrain-lvd1689m."""
        return cls(width=1024, hidden=4096, depth=24, heads=16)

    @classmethod
    def tiny(cls) -> "DINOv3Config":
        """For two CPU cores: 0.18 M parameters, images of 64 pixels."""
        return cls(width=64, hidden=192, depth=4, heads=4, patch_size=8, image_size=64)


LOGICAL_AXES = LogicalAxes(
    (r"layers/attn/[qkv]/kernel", ("embed", "heads", None)),
    (r"layers/attn/[qkv]/bias", ("heads", None)),
    (r"layers/attn/out/kernel", ("heads", "embed")),
    (r"layers/mlp/(gate|up)/kernel", ("embed", "mlp")),
    (r"layers/mlp/(gate|up)/bias", ("mlp",)),
    (r"layers/mlp/down/kernel", ("mlp", "embed")),
    (r"layers/(attn/out|mlp/down)/bias", (None,)),
    (r"layers/norm[12]/(scale|bias)", (None,)),
    (r"layers/scale[12]", (None,)),
    (r"patch/kernel", (None, "embed")),
    (r"patch/bias", (None,)),
    (r"class_token|mask_token", (None,)),
    (r"registers", (None, "embed")),
    (r"norm/(scale|bias)", (None,)),
)


def rotary(height: int, width: int, config: DINOv3Config) -> Array:
    """The rotary angles.

    A patch is known by its centre, with the image's height and width both spanning [-1, 1]. The first half of a
    head's pairs turns with y, the second with x. Class token and registers have no place and do not turn.

    Args:
      height, width: of the image, in patches.
      config: sizes.

    Returns:
      f32[1, T, K/2], in radians.
    """
    head = config.width // config.heads
    frequency = config.rope_theta ** -(jnp.arange(head // 4, dtype=jnp.float32) * 4 / head)  # [K/4]
    y, x = (2 * (jnp.arange(n, dtype=jnp.float32) + 0.5) / n - 1 for n in (height, width))
    centre = jnp.stack(jnp.meshgrid(y, x, indexing="ij"), axis=-1).reshape(height * width, 2)
    angle = (2 * math.pi * centre[:, :, None] * frequency).reshape(height * width, head // 2)
    angle = jnp.concatenate([jnp.zeros((1 + config.registers, head // 2)), angle])  # [T, K/2]
    return angle[None]


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    config: DINOv3Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array, angles: Array) -> Array:  # [B, T, D] -> [B, T, D]
        cfg, run = self.config, self.runtime
        features = (cfg.heads, cfg.width // cfg.heads)
        q = Linear(features, cfg.query_bias, run, name="q")(x)  # [B, T, N, K]
        k = Linear(features, cfg.key_bias, run, name="k")(x)
        v = Linear(features, cfg.value_bias, run, name="v")(x)
        y = attention(rotate(q, angles), rotate(k, angles), v, kernel=run.attention)
        out = Linear(cfg.width, cfg.out_bias, run, kernel_init=residual_init(cfg.depth), name="out")
        return out(y.reshape(x.shape))


class MLP(nn.Module):
    """Linear, activation, linear; or its gated form."""

    config: DINOv3Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        cfg, run = self.config, self.runtime
        act = ACTIVATIONS[cfg.activation]
        y = Linear(cfg.hidden, cfg.mlp_bias, run, name="up")(x)  # [B, T, F]
        y = constrain(y, "batch", "length", "act_mlp")
        y = act(Linear(cfg.hidden, cfg.mlp_bias, run, name="gate")(x)) * y if cfg.gated else act(y)
        return Linear(cfg.width, cfg.mlp_bias, run, kernel_init=residual_init(cfg.depth), name="down")(y)


class Layer(nn.Module):
    """One pre-norm transformer layer with scaled residual branches."""

    config: DINOv3Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array, angles: Array) -> tuple[Array, None]:
        cfg, run = self.config, self.runtime
        constant = nn.initializers.constant(cfg.layer_scale)
        scale1 = self.param("scale1", constant, (cfg.width,), run.param_dtype).astype(run.dtype)
        scale2 = self.param("scale2", constant, (cfg.width,), run.param_dtype).astype(run.dtype)
        norm1, norm2 = (layer_norm(run, cfg.epsilon, name=name) for name in ("norm1", "norm2"))
        x = x + scale1 * Attention(cfg, run, name="attn")(norm1(x), angles)  # [B, T, D]
        x = x + scale2 * MLP(cfg, run, name="mlp")(norm2(x))
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class DINOv3(nn.Module):
    """The vision transformer, in its evaluation form: no augmentation of coordinates, no dropped paths."""

    config: DINOv3Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, images: Array, hidden: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Describes images.

        Args:
          images: f[B, H, W, 3], normalised with ImageNet's mean and deviation; sides in multiples of `patch_size`.
          hidden: bool[B, P], patches that the mask token stands for, as in pre-training; None hides none.

        Returns:
          f[B, D], the class token after the final norm, and "hidden" f[B, T, D], all tokens after it: class token,
          registers, patches row by row.

        Raises:
          ValueError: if a side is not a multiple of `patch_size`.
        """
        cfg, run = self.config, self.runtime
        x = patches(images, cfg.patch_size)
        batch, height, width, _ = x.shape
        x = Linear(cfg.width, runtime=run, name="patch")(x.reshape(batch, height * width, -1))  # [B, P, D]
        normal = nn.initializers.normal(0.02)
        token = self.param("class_token", normal, (cfg.width,), run.param_dtype)
        registers = self.param("registers", normal, (cfg.registers, cfg.width), run.param_dtype)
        mask_token = self.param("mask_token", nn.initializers.zeros, (cfg.width,), run.param_dtype)
        x = x if hidden is None else jnp.where(hidden[..., None], mask_token.astype(run.dtype), x)
        prefix = jnp.concatenate([token[None], registers]).astype(run.dtype)  # [1 + R, D]
        x = jnp.concatenate([jnp.broadcast_to(prefix, (batch, *prefix.shape)), x], axis=1)  # [B, T, D]
        x = constrain(x, "batch", "length", None)
        angles = rotary(height, width, cfg)
        x, _ = scan_layers(Layer, cfg.depth, run)(cfg, run, name="layers")(x, angles)
        x = layer_norm(run, cfg.epsilon, name="norm")(x)
        return x[:, 0], {"hidden": x}


def example_inputs(config: DINOv3Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that `init` accepts."""
    return (jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, 3), "float32"),)
