"""AutoencoderKL: the convolutional VAE (Rombach et al. 2022, arXiv 2112.10752) in whose latents the decoder paints.

Letters: B images, H/W height and width in pixels, h/w the same in latents, C channels of a block, Z latent channels.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from uae_jax.models.attention import attention
from uae_jax.models.convolution import conv_general_dilated
from uae_jax.models.layers import Linear
from uae_jax.models.runtime import REMAT_POLICIES, Runtime
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array

_EPSILON = 1e-6  # of every group norm; the published configs cannot say otherwise
_LOGVAR_RANGE = (-30.0, 20.0)


@dataclasses.dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes; the defaults are those of Stable Diffusion 3 and 3.5.

    Attributes:
      in_channels, out_channels: of the image that goes in and of the one that comes out.
      latent_channels: Z.
      block_out_channels: C of each encoder block; each but the last halves the sides. The decoder mirrors them.
      layers_per_block: residual blocks in each encoder block; a decoder block has one more.
      norm_num_groups: groups of every group norm; divides every C.
      scaling_factor, shift_factor: the diffusion model works on (z - shift) * scaling.
      use_quant_conv, use_post_quant_conv: a 1x1 convolution after the encoder, before the decoder.
      mid_block_add_attention: self-attention over all positions at the lowest resolution.
      sample_size, force_upcast: published advice to pipelines (tile size; float16 overflows), kept for saving only.
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    mid_block_add_attention: bool = True
    sample_size: int = 1024
    force_upcast: bool = True

    def __post_init__(self):
        if not self.block_out_channels or any(c % self.norm_num_groups for c in self.block_out_channels):
            raise ValueError(
                f"block_out_channels is {self.block_out_channels}, wanted multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )

    @property
    def downsampling(self) -> int:
        """Image side over latent side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def sd3(cls) -> "AutoencoderKLConfig":
        """stabilityai/stable-diffusion-3.5-{large,medium}, folder vae: 84 M parameters, sides 8 times smaller."""
        return cls()

    @classmethod
    def small(cls) -> "AutoencoderKLConfig":
        """SD3's, for images of 256 pixels, its latents not measured yet."""
        return cls(sample_size=256, scaling_factor=1.0, shift_factor=0.0)

    @classmethod
    def tiny(cls) -> "AutoencoderKLConfig":
        """For two CPU cores: 0.17 M parameters, sides 4 times smaller, 4 latent channels."""
        return cls(
            latent_channels=4,
            block_out_channels=(8, 16, 32),
            layers_per_block=1,
            norm_num_groups=4,
            scaling_factor=1.0,
            shift_factor=0.0,
            sample_size=64,
        )


LOGICAL_AXES = LogicalAxes(
    (r".*(conv|conv1|conv2|conv_in|conv_out|resample|shortcut)/kernel", (None, None, None, "channels")),
    (r".*/attention/(q|k|v)/kernel", ("embed", "heads")),
    (r".*/attention/(q|k|v)/bias", ("heads",)),
    (r".*/attention/o/kernel", ("heads", "embed")),
    (r".*/attention/o/bias", (None,)),
    (r".*(conv|conv1|conv2|conv_in|conv_out|resample|shortcut)/bias", (None,)),
    (r".*/norm(1|2|_out)?/(scale|bias)", (None,)),
)


@struct.dataclass
class Posterior:
    """A diagonal gaussian over latents, in float32.

    Attributes:
      mean: f32[B, h, w, Z].
      logvar: f32[B, h, w, Z], logarithm of the variance, within [-30, 20].
    """

    mean: Array
    logvar: Array

    def mode(self) -> Array:
        return self.mean

    def shifted_by(self, noise: Array) -> Array:
        """mean + std * noise: the sample that standard normal `noise` stands for."""
        return self.mean + jnp.exp(0.5 * self.logvar) * noise

    def sample(self, key: Array) -> Array:
        return self.shifted_by(jax.random.normal(key, self.mean.shape, self.mean.dtype))


def normalise_latents(latents: Array, config: AutoencoderKLConfig) -> Array:
    """Brings what `encode` yields to about unit variance, as the diffusion model wants it."""
    return (latents - config.shift_factor) * config.scaling_factor


def denormalise_latents(latents: Array, config: AutoencoderKLConfig) -> Array:
    """Undoes `normalise_latents`, for `decode`."""
    return latents / config.scaling_factor + config.shift_factor


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to a gaussian over latents, and latents to images.

    Call the halves through `apply(..., method="encode")` and `method="decode"`; `__call__` reconstructs through the
    mode, and is what `init` uses. Latents go in and out as the network has them: see `denormalise_latents`.
    """

    config: AutoencoderKLConfig
    runtime: Runtime = Runtime()

    def setup(self):
        c, run = self.config, self.runtime
        self.encoder = Encoder(c, run)
        self.decoder = Decoder(c, run)
        if c.use_quant_conv:
            self.quant_conv = _conv(run, 2 * c.latent_channels, kernel=1)
        if c.use_post_quant_conv:
            self.post_quant_conv = _conv(run, c.latent_channels, kernel=1)

    def encode(self, images: Array) -> Posterior:  # [B, H, W, 3] -> [B, h, w, Z]
        moments = self.encoder(images)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(logvar, *_LOGVAR_RANGE))

    def decode(self, latents: Array) -> Array:  # [B, h, w, Z] -> f32[B, H, W, 3]
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents).astype(jnp.float32)

    def __call__(self, images: Array) -> Array:  # [B, H, W, 3] -> [B, H, W, 3]
        return self.decode(self.encode(images).mode())


class Encoder(nn.Module):
    """Residual blocks at ever lower resolution; mean and logvar side by side."""

    config: AutoencoderKLConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, H, W, 3] -> [B, h, w, 2 Z]
        c, run = self.config, self.runtime
        x = _conv(run, c.block_out_channels[0], name="conv_in")(x)
        last = len(c.block_out_channels) - 1
        for i, channels in enumerate(c.block_out_channels):
            resample = None if i == last else "down"
            x = Block(c, run, channels, c.layers_per_block, resample, name=f"down_{i}")(x)
        x = MidBlock(c, run, name="mid")(x)
        x = nn.silu(_norm(c, run, "norm_out")(x))
        return _conv(run, 2 * c.latent_channels, name="conv_out")(x)


class Decoder(nn.Module):
    """The encoder's mirror image, one residual block deeper at each resolution."""

    config: AutoencoderKLConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, z: Array) -> Array:  # [B, h, w, Z] -> [B, H, W, 3]
        c, run = self.config, self.runtime
        x = _conv(run, c.block_out_channels[-1], name="conv_in")(z)
        x = MidBlock(c, run, name="mid")(x)
        last = len(c.block_out_channels) - 1
        for i, channels in enumerate(reversed(c.block_out_channels)):
            resample = None if i == last else "up"
            x = Block(c, run, channels, c.layers_per_block + 1, resample, name=f"up_{i}")(x)
        x = nn.silu(_norm(c, run, "norm_out")(x))
        return _conv(run, c.out_channels, name="conv_out")(x)


class Block(nn.Module):
    """`depth` residual blocks, then, if asked, half or twice the sides."""

    config: AutoencoderKLConfig
    runtime: Runtime
    channels: int
    depth: int
    resample: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        residual = _remat(ResidualBlock, self.runtime)
        for i in range(self.depth):
            x = residual(self.config, self.runtime, self.channels, name=f"residual_{i}")(x)
        if self.resample == "down":
            # Padded below and to the right only, as the network was trained.
            x = _conv(self.runtime, self.channels, stride=2, padding=(0, 1), name="resample")(x)
        elif self.resample == "up":
            x = _conv(self.runtime, self.channels, name="resample")(x.repeat(2, axis=1).repeat(2, axis=2))
        x = constrain(x, "images", None, None, None)
        self.sow("intermediates", "hidden", x)
        return x


class MidBlock(nn.Module):
    """A residual block, attention over all positions, and another residual block, at the lowest resolution."""

    config: AutoencoderKLConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, run = self.config, self.runtime
        residual = _remat(ResidualBlock, run)
        x = residual(c, run, c.block_out_channels[-1], name="residual_0")(x)
        if c.mid_block_add_attention:
            x = _remat(AttentionBlock, run)(c, run, name="attention")(x)
        x = residual(c, run, c.block_out_channels[-1], name="residual_1")(x)
        x = constrain(x, "images", None, None, None)
        self.sow("intermediates", "hidden", x)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions behind norm and SiLU; the shortcut is a 1x1 convolution where the width changes."""

    config: AutoencoderKLConfig
    runtime: Runtime
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, run = self.config, self.runtime
        y = _conv(run, self.channels, name="conv1")(nn.silu(_norm(c, run, "norm1")(x)))
        y = _conv(run, self.channels, name="conv2")(nn.silu(_norm(c, run, "norm2")(y)))
        if x.shape[-1] != self.channels:
            x = _conv(run, self.channels, kernel=1, name="shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """Self-attention over the h w positions, with one head as wide as the block."""

    config: AutoencoderKLConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:
        run = self.runtime
        b, h, w, c = x.shape
        y = _norm(self.config, run, "norm")(x).reshape(b, h * w, c)
        q, k, v = (Linear(c, runtime=run, name=name)(y)[:, :, None] for name in "qkv")  # [B, h w, 1, C]
        y = attention(q, k, v, rows="images", kernel=run.attention)[:, :, 0]
        return x + Linear(c, runtime=run, name="o")(y).reshape(b, h, w, c)


def example_inputs(config: AutoencoderKLConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that `init` accepts."""
    return (jax.ShapeDtypeStruct((1, config.downsampling, config.downsampling, config.in_channels), "float32"),)


def _conv(
    runtime: Runtime,
    features: int,
    kernel: int = 3,
    stride: int = 1,
    padding: tuple[int, int] | None = None,
    name: str | None = None,
) -> nn.Conv:
    """A square convolution; by default padded so that a stride of 1 keeps the sides."""
    padding = padding or (kernel // 2, kernel // 2)
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=(padding, padding),
        dtype=runtime.dtype,
        param_dtype=runtime.param_dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


class GroupNorm(nn.Module):
    """GroupNorm over sides and the channels of a group; statistics in float32 by the two-pass formula.

    Sums run over the sides first and over a group's few channels last, which on CPUs is several times as fast as
    reducing both at once.
    """

    groups: int
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, H, W, C] -> [B, H, W, C]
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.runtime.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.runtime.param_dtype)
        x = x.astype(jnp.float32)
        x = x - self._over_groups(x)
        factor = jax.lax.rsqrt(self._over_groups(x**2) + _EPSILON) * scale
        return (x * factor + bias).astype(self.runtime.dtype)

    def _over_groups(self, x: Array) -> Array:  # [B, H, W, C] -> [B, 1, 1, C], the mean of each channel's group
        b, _, _, c = x.shape
        means = x.mean((1, 2)).reshape(b, self.groups, c // self.groups).mean(-1)
        return jnp.repeat(means, c // self.groups, axis=-1)[:, None, None]


def _norm(config: AutoencoderKLConfig, runtime: Runtime, name: str) -> GroupNorm:
    return GroupNorm(config.norm_num_groups, runtime, name=name)


def _remat(block: type[nn.Module], runtime: Runtime) -> type[nn.Module]:
    """Recomputes a block in the backward pass as `runtime.remat` says; there are too few equal ones to scan."""
    policy = REMAT_POLICIES[runtime.remat]
    return block if policy is None else nn.remat(block, policy=policy)
