"""SD3 / SD3.5 MMDiT: the rectified-flow transformer in which image and text tokens attend to each other.

Architecture: Esser et al. 2024, arXiv 2403.03206; sizes and arithmetic as `SD3Transformer2DModel` of diffusers.

Letters: B batch, H/W latent height and width, C latent channels, S patch side, P patches (H/S * W/S), T text tokens,
E width of the text conditioning, V width of the pooled conditioning, D model width, N heads, K modulation vectors per
stream, L layers of one run, G side of the position table.

The modulation (a third of all parameters) depends on (timestep, pooled) alone, so it is a method of its own: a sampler
that knows its timesteps computes `modulation` once and calls `denoise` with it.
"""

import dataclasses
import itertools
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.models.attention import attention
from uae_jax.models.layers import ACTIVATIONS, Linear, layer_norm, patches, rms_norm
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array

EPSILON = 1e-6  # of every norm
TIME_CHANNELS = 256  # of the sinusoidal timestep embedding
MAX_PERIOD = 10_000
MLP_RATIO = 4


@dataclasses.dataclass(frozen=True)
class SD3Config:
    """Sizes; the defaults are those of SD3.5-Large.

    Attributes:
      num_layers: depth; the last layer leaves the text stream as it is.
      num_heads, head_dim: N and D / N.
      in_channels, out_channels: C of the latents and of the velocity.
      patch_size: S.
      context_dim: E.
      pooled_dim: V.
      sample_size: a fresh position table spans the positions from 0 to sample_size / S, however many patches it holds.
      pos_embed_max_size: G.
      dual_attention_layers: numbers of the layers in which image tokens attend to each other a second time.
      qk_norm: whether queries and keys are RMS-normalised per head.
      positions: frequencies of a fresh position table, "published" or "even"; a checkpoint brings its own table.
    """

    num_layers: int = 38
    num_heads: int = 38
    head_dim: int = 64
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    context_dim: int = 4096
    pooled_dim: int = 2048
    sample_size: int = 128
    pos_embed_max_size: int = 192
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: bool = True
    positions: Literal["published", "even"] = dataclasses.field(default="published", compare=False)

    def __post_init__(self):
        if self.num_layers < 1:
            raise ValueError(f"num_layers is {self.num_layers}, wanted at least 1")
        if self.width % 4:
            raise ValueError(
                f"num_heads x head_dim is {self.width}, wanted a multiple of 4: sine and cosine of two coordinates"
            )
        if self.sample_size < self.patch_size:
            raise ValueError(f"sample_size is {self.sample_size}, wanted at least patch_size {self.patch_size}")
        outside = [i for i in self.dual_attention_layers if not 0 <= i < self.num_layers]
        if outside:
            raise ValueError(f"dual_attention_layers has {outside}, wanted numbers from 0 to {self.num_layers - 1}")

    @property
    def width(self) -> int:
        """D."""
        return self.num_heads * self.head_dim

    @property
    def runs(self) -> tuple[tuple[int, int, bool], ...]:
        """Runs of equal layers before the last one: (number of the first, count, whether dual)."""
        dual = [i in self.dual_attention_layers for i in range(self.num_layers - 1)]
        groups = [(kind, [i for i, _ in group]) for kind, group in itertools.groupby(enumerate(dual), lambda x: x[1])]
        return tuple((numbers[0], len(numbers), kind) for kind, numbers in groups)

    @property
    def last_is_dual(self) -> bool:
        return self.num_layers - 1 in self.dual_attention_layers

    @classmethod
    def sd35_large(cls) -> "SD3Config":
        """8.06 B parameters: huggingface.co/stabilityai/stable-diffusion-3.5-large, transformer/config.json."""
        return cls()

    @classmethod
    def sd35_medium(cls) -> "SD3Config":
        """2.24 B parameters: huggingface.co/stabilityai/stable-diffusion-3.5-medium, transformer/config.json."""
        return cls(num_layers=24, num_heads=24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)))

    @classmethod
    def small(cls) -> "SD3Config":
        """0.3 B parameters, for one accelerator and from scratch; images of 256 pixels are 32x32 latents."""
        return cls(num_layers=14, num_heads=12, context_dim=1024, pooled_dim=64, sample_size=32, pos_embed_max_size=64)

    @classmethod
    def tiny(cls) -> "SD3Config":
        """For two CPU cores: 2.3 M parameters; images of 64 pixels are 16x16 latents, 64 patches."""
        return cls(
            num_layers=4,
            num_heads=4,
            head_dim=32,
            in_channels=4,
            out_channels=4,
            context_dim=128,
            pooled_dim=64,
            sample_size=16,
            pos_embed_max_size=16,
            positions="even",
        )


LOGICAL_AXES = LogicalAxes(
    (r"pos_embed/table", (None, None, "embed")),
    (r"pos_embed/proj/kernel", (None, "embed")),
    (r"context_embedder/kernel", ("mlp", "embed")),
    (r"(timestep|pooled)_embedder/up/kernel", ("embed", "mlp")),
    (r"(timestep|pooled)_embedder/down/kernel", ("mlp", "embed")),
    (r"(timestep|pooled)_embedder/up/bias", ("mlp",)),
    (r"(pos_embed/proj|context_embedder|(timestep|pooled)_embedder/down)/bias", (None,)),
    (r"((layers_adaln_\d+|last_adaln)/(image|context)|out_adaln)/kernel", ("embed", "mlp")),
    (r"((layers_adaln_\d+|last_adaln)/(image|context)|out_adaln)/bias", ("mlp",)),
    (r"(layers_\d+|last)/attn2?/(add_)?[qkv]/kernel", ("embed", "heads")),
    (r"(layers_\d+|last)/attn2?/(add_)?[qkv]/bias", ("heads",)),
    (r"(layers_\d+|last)/attn2?/(add_)?o/kernel", ("heads", "embed")),
    (r"(layers_\d+|last)/attn2?/norm_(add_)?[qk]/scale", (None,)),
    (r"(layers_\d+|last)/ff(_context)?/up/kernel", ("embed", "mlp")),
    (r"(layers_\d+|last)/ff(_context)?/up/bias", ("mlp",)),
    (r"(layers_\d+|last)/ff(_context)?/down/kernel", ("mlp", "embed")),
    (r"(layers_\d+|last)/(attn2?/(add_)?o|ff(_context)?/down)/bias", (None,)),
    (r"proj_out/kernel", ("embed", None)),
    (r"proj_out/bias", (None,)),
)

# Leaves that are stored with the parameters but are not trained: no gradient reaches them, and an optimiser should
# leave them out, so that it neither decays them nor keeps moments for them.
BUFFERS = (r"pos_embed/table",)

# Adapter targets of Flow-GRPO (Liu et al. 2025, arXiv 2505.05470): the joint attention of every layer.
ATTENTION_TARGETS = (r"(layers_\d+|last)/attn/(add_)?[qkvo]",)


@flax.struct.dataclass
class StreamModulation:
    """Shifts, scales and gates of both streams, of one layer or (with a leading L) of a run.

    Attributes:
      image: [B, K, D] or [L, B, K, D]: shift, scale, gate of the attention, then of the MLP; in a dual layer then of
        the second attention, so K is 6 or 9.
      context: [B, 6, D] or [L, B, 6, D] likewise; in the last layer [B, 2, D]: scale, shift.
    """

    image: Array
    context: Array


@flax.struct.dataclass
class Modulation:
    """All that the transformer takes from (timestep, pooled); B may be 1 for a whole batch at one timestep.

    Attributes:
      layers: one per run of `SD3Config.runs`.
      last: of the last layer.
      out: [B, 2, D]: scale, shift before the output projection.
    """

    layers: tuple[StreamModulation, ...]
    last: StreamModulation
    out: Array


def modulate(x: Array, shift: Array, scale: Array) -> Array:  # [B, T, D], [B, D], [B, D] -> [B, T, D]
    """Scales and shifts every token of a sample alike; a scale of zero keeps `x`."""
    return x * (1 + scale[:, None]) + shift[:, None]


def timestep_embedding(timestep: Array) -> Array:  # f[B] -> f32[B, TIME_CHANNELS]
    """Cosines, then sines, of the timestep at geometric frequencies from 1 to almost 1 / MAX_PERIOD."""
    half = TIME_CHANNELS // 2
    # Rounded as in the reference, whose exponents are float32: timesteps multiply any difference by up to 1000.
    exponents = np.float32(-np.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def position_table(config: SD3Config) -> Array:  # f32[G, G, D]
    """Sines and cosines of the column (first half of D) and of the row (second half).

    A fresh model begins with this one. A published checkpoint brings its own, whose positions need not be these.
    Published frequencies are made for wide models and many patches: of 32 of them a grid of 8x8 uses few. Even ones, up
    to half a turn from patch to patch, make all rows and all columns orthogonal, and a small model learns faster by it.
    """
    quarter, side = config.width // 4, config.pos_embed_max_size
    if config.positions == "even":
        angles = np.outer(np.arange(side), np.pi * (np.arange(quarter) + 0.5) / quarter)
    else:
        base = config.sample_size // config.patch_size
        positions = np.arange(side, dtype=np.float32) / np.float32(side / base)
        angles = np.outer(positions, 1.0 / MAX_PERIOD ** (np.arange(quarter) / quarter))  # float64
    # Only one axis is computed here and held as a constant, so that tracing a full-size model takes no memory.
    axis = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
    columns = jnp.broadcast_to(axis[None, :], (side, side, 2 * quarter))
    rows = jnp.broadcast_to(axis[:, None], (side, side, 2 * quarter))
    return jnp.concatenate([columns, rows], axis=-1)


class PatchEmbed(nn.Module):
    """Projects patches and adds the middle of the position table, cropped to the latents' size."""

    config: SD3Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, latents: Array) -> Array:  # [B, H, W, C] -> [B, P, D]
        cfg, run = self.config, self.runtime
        side = cfg.pos_embed_max_size
        x = patches(latents, cfg.patch_size)  # [B, H/S, W/S, S*S*C]
        rows, columns = x.shape[1:3]
        if max(rows, columns) > side:
            raise ValueError(
                f"latents are {latents.shape[1]}x{latents.shape[2]}, wanted at most {side * cfg.patch_size} a side: "
                f"the position table has {side}x{side} patches; paint a smaller image"
            )
        table = self.param("table", lambda _: position_table(cfg).astype(run.param_dtype))
        top, left = (side - rows) // 2, (side - columns) // 2
        window = jax.lax.stop_gradient(table[top : top + rows, left : left + columns])
        x = Linear(cfg.width, runtime=run, name="proj")(x) + window.astype(run.dtype)
        return x.reshape(x.shape[0], rows * columns, cfg.width)


class Embedder(nn.Module):
    """Linear, SiLU, Linear: how the timestep and the pooled conditioning reach the width of the model."""

    width: int
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, TIME_CHANNELS or V] -> [B, D]
        x = ACTIVATIONS["silu"](Linear(self.width, runtime=self.runtime, name="up")(x))
        return Linear(self.width, runtime=self.runtime, name="down")(x)


def _zero_linear(features: int, runtime: Runtime, name: str | None = None) -> Linear:
    """Linear that starts at zero, so that a fresh layer passes its input on (adaLN-Zero, arXiv 2212.09748)."""
    return Linear(features, runtime=runtime, kernel_init=nn.initializers.zeros, name=name)


class StreamAdaLN(nn.Module):
    """The modulation of one layer's two streams; carries its input on, so that a run of layers is one scan."""

    width: int
    image: int  # K of the image stream
    context: int  # K of the text stream
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, activated: Array) -> tuple[Array, StreamModulation]:  # [B, D]
        image = _zero_linear(self.image * self.width, self.runtime, "image")(activated)
        context = _zero_linear(self.context * self.width, self.runtime, "context")(activated)
        return activated, StreamModulation(image=_apart(image, self.image), context=_apart(context, self.context))


def _apart(modulation: Array, count: int) -> Array:  # [B, K*D] -> [B, K, D]
    """The vectors of a modulation. Small, and multiplied with tokens whose width is whole on every device.

    They lie side by side in one kernel [D, K*D]: one of [D, K, D] the TPU compiler copies as a whole, padded.
    """
    whole = constrain(modulation, "batch", None)
    return whole.reshape(-1, count, whole.shape[-1] // count)


class JointAttention(nn.Module):
    """Attention over image tokens and, if `joint`, text tokens behind them, each with projections of their own."""

    config: SD3Config
    joint: bool
    context_out: bool = False
    runtime: Runtime = Runtime()

    def _heads(self, x: Array, prefix: str) -> tuple[Array, Array, Array]:  # [B, T, D] -> 3 of [B, T, N, D/N]
        cfg, run = self.config, self.runtime
        shape = (*x.shape[:2], cfg.num_heads, cfg.head_dim)
        q, k, v = (Linear(cfg.width, runtime=run, name=prefix + part)(x).reshape(shape) for part in "qkv")
        if cfg.qk_norm:
            q = rms_norm(run, EPSILON, name=f"norm_{prefix}q")(q)
            k = rms_norm(run, EPSILON, name=f"norm_{prefix}k")(k)
        return q, k, v

    @nn.compact
    def __call__(
        self, x: Array, c: Array | None = None, context_lengths: Array | None = None
    ) -> tuple[Array, Array | None]:
        """Mixes [B, P, D] and [B, T, D]; the second result is None unless `context_out`."""
        cfg, run = self.config, self.runtime
        q, k, v = self._heads(x, "")
        if self.joint:
            c_q, c_k, c_v = self._heads(c, "add_")
            k, v = jnp.concatenate([k, c_k], axis=1), jnp.concatenate([v, c_v], axis=1)
            if self.context_out:  # else nobody reads what the text tokens gather
                q = jnp.concatenate([q, c_q], axis=1)
        # Text stands last, so what nobody sees is one tail of the keys.
        seen = None if context_lengths is None else x.shape[1] + context_lengths
        y = attention(q, k, v, kv_lengths=seen, kernel=run.attention)
        y = y.reshape(*y.shape[:2], cfg.width)
        c_out = Linear(cfg.width, runtime=run, name="add_o")(y[:, x.shape[1] :]) if self.context_out else None
        return Linear(cfg.width, runtime=run, name="o")(y[:, : x.shape[1]]), c_out


class FeedForward(nn.Module):
    """Linear, GELU (tanh), Linear."""

    width: int
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        x = Linear(MLP_RATIO * self.width, runtime=self.runtime, name="up")(x)
        x = ACTIVATIONS["gelu_pytorch_tanh"](constrain(x, "batch", "length", "act_mlp"))
        return Linear(self.width, runtime=self.runtime, name="down")(x)


class JointBlock(nn.Module):
    """One layer over (image tokens, text tokens).

    Attributes:
      dual: image tokens attend to each other a second time, in parallel.
      last: the text stream is read but not updated.
    """

    config: SD3Config
    dual: bool = False
    last: bool = False
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(
        self, streams: tuple[Array, Array], modulation: StreamModulation, context_lengths: Array | None = None
    ) -> tuple[tuple[Array, Array], None]:
        cfg, run = self.config, self.runtime
        x, c = streams  # [B, P, D], [B, T, D]
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = _vectors(modulation.image)[:6]
        joint = JointAttention(cfg, joint=True, context_out=not self.last, runtime=run, name="attn")

        normed = self._norm(x)
        x_in = modulate(normed, shift_a, scale_a)
        if self.last:
            c_scale, c_shift = _vectors(modulation.context)
            x_attn, _ = joint(x_in, modulate(self._norm(c), c_shift, c_scale), context_lengths)
        else:
            c_shift_a, c_scale_a, c_gate_a, *c_mlp = _vectors(modulation.context)
            x_attn, c_attn = joint(x_in, modulate(self._norm(c), c_shift_a, c_scale_a), context_lengths)
            c = c + c_gate_a[:, None] * c_attn
            c = c + self._mlp(c, *c_mlp, name="ff_context")
        x = x + gate_a[:, None] * x_attn
        if self.dual:
            shift_d, scale_d, gate_d = _vectors(modulation.image)[6:]
            second = JointAttention(cfg, joint=False, runtime=run, name="attn2")
            x = x + gate_d[:, None] * second(modulate(normed, shift_d, scale_d))[0]
        x = x + self._mlp(x, shift_m, scale_m, gate_m, name="ff")

        x, c = constrain(x, "batch", "length", None), constrain(c, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        if not self.last:
            self.sow("intermediates", "hidden_context", c)
        return (x, c), None

    def _norm(self, x: Array) -> Array:
        return layer_norm(self.runtime, EPSILON, affine=False)(x)

    def _mlp(self, x: Array, shift: Array, scale: Array, gate: Array, name: str) -> Array:
        mlp = FeedForward(self.config.width, runtime=self.runtime, name=name)
        return gate[:, None] * mlp(modulate(self._norm(x), shift, scale))


def _vectors(modulation: Array) -> list[Array]:  # [B, K, D] -> K of [B, D]
    return [modulation[:, i] for i in range(modulation.shape[1])]


class SD3Transformer(nn.Module):
    """Predicts the velocity of a rectified flow from noisy latents.

    Submodules: `pos_embed`, `context_embedder`, `timestep_embedder`, `pooled_embedder`; for run i of equal layers
    `layers_adaln_i` and `layers_i` (both stacked); `last_adaln` and `last`; `out_adaln`, `proj_out`.
    """

    config: SD3Config
    runtime: Runtime = Runtime()

    def setup(self):
        cfg, run = self.config, self.runtime
        width = cfg.width
        self.pos_embed = PatchEmbed(cfg, run)
        self.context_embedder = Linear(width, runtime=run)
        self.timestep_embedder = Embedder(width, run)
        self.pooled_embedder = Embedder(width, run)
        # Linen names the members of a list layers_0, layers_1, ...
        self.layers_adaln = [
            scan_layers(StreamAdaLN, count, run)(width, 9 if dual else 6, 6, run) for _, count, dual in cfg.runs
        ]
        axes = (0, nn.broadcast)
        self.layers = [
            scan_layers(JointBlock, count, run, in_axes=axes)(cfg, dual, False, run) for _, count, dual in cfg.runs
        ]
        self.last_adaln = StreamAdaLN(width, 9 if cfg.last_is_dual else 6, 2, run)
        self.last = JointBlock(cfg, cfg.last_is_dual, True, run)
        self.out_adaln = _zero_linear(2 * width, run)
        self.norm_out = layer_norm(run, EPSILON, affine=False)
        self.proj_out = _zero_linear(cfg.patch_size**2 * cfg.out_channels, run)

    def __call__(
        self,
        latents: Array,
        timestep: Array,
        context: Array,
        pooled: Array,
        context_lengths: Array | None = None,
    ) -> Array:
        """Predicts the velocity, noise minus image.

        Args:
          latents: f[B, H, W, C], sides in multiples of the patch and no larger than the position table.
          timestep: f[B], noise level times 1000.
          context: f[B, T, E], text conditioning.
          pooled: f[B, V], pooled conditioning.
          context_lengths: i32[B], how many positions of the context count, the rest being there to fill a shape; None:
            all. (Padding that a published pipeline lets the transformer see does count.)

        Returns:
          [B, H, W, C] in the runtime's dtype.
        """
        return self.denoise(latents, context, self.modulation(timestep, pooled), context_lengths)

    def modulation(self, timestep: Array, pooled: Array) -> Modulation:
        """Computes what depends on (timestep, pooled) only: f[B] and f[B, V]."""
        embedded = self.timestep_embedder(timestep_embedding(timestep)) + self.pooled_embedder(pooled)  # [B, D]
        self.sow("intermediates", "embedded", embedded)
        activated = ACTIVATIONS["silu"](embedded)
        return Modulation(
            layers=tuple(run(activated)[1] for run in self.layers_adaln),
            last=self.last_adaln(activated)[1],
            out=_apart(self.out_adaln(activated), 2),
        )

    def denoise(
        self, latents: Array, context: Array, modulation: Modulation, context_lengths: Array | None = None
    ) -> Array:
        """Predicts the velocity under a modulation computed before; arguments and result as `__call__`."""
        x = constrain(self.pos_embed(latents), "batch", "length", None)  # [B, P, D]
        c = constrain(self.context_embedder(context), "batch", "length", None)  # [B, T, D]
        self.sow("intermediates", "patches", x)
        streams = (x, c)
        for run, vectors in zip(self.layers, modulation.layers, strict=True):
            streams, _ = run(streams, vectors, context_lengths)
        (x, _), _ = self.last(streams, modulation.last, context_lengths)
        scale, shift = _vectors(modulation.out)
        x = modulate(self.norm_out(x), shift, scale)
        return self._unpatchify(self.proj_out(x), latents.shape)

    def _unpatchify(self, x: Array, shape: tuple[int, ...]) -> Array:  # [B, P, S*S*C] -> [B, H, W, C]
        size, channels = self.config.patch_size, self.config.out_channels
        b, h, w, _ = shape
        x = x.reshape(b, h // size, w // size, size, size, channels)
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, channels)


def example_inputs(config: SD3Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that `init` accepts."""
    side = config.patch_size
    return (
        jax.ShapeDtypeStruct((1, side, side, config.in_channels), "float32"),
        jax.ShapeDtypeStruct((1,), "float32"),
        jax.ShapeDtypeStruct((1, 1, config.context_dim), "float32"),
        jax.ShapeDtypeStruct((1, config.pooled_dim), "float32"),
    )
