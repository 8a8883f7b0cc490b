"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), without and with registers (Darcet et al. 2023, arXiv 2309.16588).

Letters: B images, H/W height and width, P patch side, h/w the same in patches, G side of the grid of trained
positions, N patches (h w), R registers, T tokens (1 + R + N), D width, A attention heads.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from uae_jax.models.attention import attention
from uae_jax.models.layers import ACTIVATIONS, Linear, layer_norm, patches, residual_init
from uae_jax.models.runtime import Runtime, scan_layers
from uae_jax.parallel.sharding import LogicalAxes, constrain

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DINOv2Config:
    """Sizes; the defaults are those of DINOv2-L.

    Attributes:
      image_size: side that the position embeddings were trained for; other sizes are interpolated.
      patch_size: P.
      channels: of the image.
      width, layers, heads: D, depth, A.
      mlp_ratio: hidden width of the MLP over D.
      swiglu: gated MLP (DINOv2-g) in place of two layers with `hidden_act` between.
      registers: None for the original model; a number, zero included, for the one with registers, which also
        resizes positions by another filter.
      layer_norm_eps: of every norm.
      qkv_bias: whether query, key and value have biases.
      hidden_act: a name in `uae_jax.models.layers.ACTIVATIONS`.
      mask_token: whether the checkpoint has one, which stands for hidden patches in pre-training.
      layer_scale: initial value of the per-channel scale of each branch.
    """

    image_size: int = 518
    patch_size: int = 14
    channels: int = 3
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: int = 4
    swiglu: bool = False
    registers: int | None = None
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    mask_token: bool = True
    layer_scale: float = 1.0

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, wanted a multiple of the number of heads, {self.heads}")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, wanted one of {', '.join(ACTIVATIONS)}")
        if self.registers is not None and not self.mask_token:
            raise ValueError("mask_token is False, wanted True: the model with registers always has one")

    @property
    def grid(self) -> int:
        """G."""
        return self.image_size // self.patch_size

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP; a gated one keeps two thirds, rounded up to a multiple of 8."""
        full = self.width * self.mlp_ratio
        return -(-int(full * 2 / 3) // 8) * 8 if self.swiglu else full

    @classmethod
    def large(cls) -> "DINOv2Config":
        """facebook/dinov2-large: ViT-L/14, 304 M parameters."""
        return cls()

    @classmethod
    def large_with_registers(cls) -> "DINOv2Config":
        """facebook/dinov2-with-registers-large: ViT-L/14, 4 registers."""
        return cls(registers=4)

    @classmethod
    def giant(cls) -> "DINOv2Config":
        """facebook/dinov2-giant: ViT-g/14, gated MLP, 1.1 B parameters."""
        return cls(width=1536, layers=40, heads=24, swiglu=True)

    @classmethod
    def tiny(cls) -> "DINOv2Config":
        """For two CPU cores: 0.18 M parameters, images of 64 pixels."""
        return cls(image_size=64, patch_size=8, width=64, layers=4, heads=4, mlp_ratio=3)


LOGICAL_AXES = LogicalAxes(
    (r"cls_token|register_tokens|position", (None, None, "embed")),
    (r"mask_token", (None, "embed")),
    (r"patch_embed/kernel", (None, "embed")),
    (r"patch_embed/bias", (None,)),
    (r"layers/attention/(q|k|v)/kernel", ("embed", "heads")),
    (r"layers/attention/(q|k|v)/bias", ("heads",)),
    (r"layers/attention/o/kernel", ("heads", "embed")),
    (r"layers/attention/o/bias", (None,)),
    (r"layers/mlp/up/kernel", ("embed", "mlp")),
    (r"layers/mlp/up/bias", ("mlp",)),
    (r"layers/mlp/gate_up/kernel", ("embed", None, "mlp")),
    (r"layers/mlp/gate_up/bias", (None, "mlp")),
    (r"layers/mlp/down/kernel", ("mlp", "embed")),
    (r"layers/mlp/down/bias", (None,)),
    (r"layers/(attention|mlp)_scale", (None,)),
    (r"(layers/)?norm[12]?/(scale|bias)", (None,)),
)


class DINOv2(nn.Module):
    """Vision transformer whose normed class token is the image's feature."""

    config: DINOv2Config
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, images: Array, hidden: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Computes features of images.

        Args:
          images: f[B, H, W, 3] with the channels' mean and deviation already taken out; H and W multiples of P.
          hidden: bool[B, N], patches that the mask token stands for; None hides none.

        Returns:
          features [B, D], and aux with "hidden" [B, T, D]: all tokens after the last norm, in the order class token,
          registers, patches row by row.

        Raises:
          ValueError: if a side is not a multiple of P, or patches are hidden of a model without a mask token.
        """
        c, run = self.config, self.runtime
        x = constrain(self._embed(images, hidden), "batch", "length", None)
        self.sow("intermediates", "embeddings", x)
        x, _ = scan_layers(Layer, c.layers, run)(c, run, name="layers")(x)
        x = layer_norm(run, c.layer_norm_eps, name="norm")(x)
        return x[:, 0], {"hidden": x}

    def _embed(self, images: Array, hidden: Array | None) -> Array:  # [B, H, W, 3] -> [B, T, D]
        c, run = self.config, self.runtime
        token_init = nn.initializers.truncated_normal(0.02)
        x = Linear(c.width, runtime=run, name="patch_embed")(patches(images, c.patch_size))  # [B, h, w, D]
        b, h, w, _ = x.shape
        cls = self.param("cls_token", token_init, (1, 1, c.width), run.param_dtype)
        position = self.param("position", token_init, (1, 1 + c.grid**2, c.width), run.param_dtype)
        x = x.reshape(b, h * w, c.width)
        if c.mask_token:
            token = self.param("mask_token", nn.initializers.zeros, (1, c.width), run.param_dtype)
            x = x if hidden is None else jnp.where(hidden[..., None], token.astype(run.dtype), x)
        elif hidden is not None:
            raise ValueError("patches are to be hidden, but the model has no mask token; take one with mask_token True")
        position = resize_positions(position, (h, w), antialias=c.registers is not None).astype(run.dtype)
        x = x + position[:, 1:]
        tokens = [jnp.broadcast_to(cls.astype(run.dtype) + position[:, :1], (b, 1, c.width)), x]
        if c.registers is not None:
            shape = (1, c.registers, c.width)
            registers = self.param("register_tokens", nn.initializers.zeros, shape, run.param_dtype)
            tokens.insert(1, jnp.broadcast_to(registers.astype(run.dtype), (b, *shape[1:])))
        return jnp.concatenate(tokens, axis=1)


class Layer(nn.Module):
    """Attention and MLP, each normed before and scaled per channel after."""

    config: DINOv2Config
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, None]:  # [B, T, D] -> [B, T, D]
        c, run = self.config, self.runtime

        def scale(name: str) -> Array:
            init = nn.initializers.constant(c.layer_scale)
            return self.param(name, init, (c.width,), run.param_dtype).astype(run.dtype)

        y = layer_norm(run, c.layer_norm_eps, name="norm1")(x)
        x = x + scale("attention_scale") * SelfAttention(c, run, name="attention")(y)
        y = layer_norm(run, c.layer_norm_eps, name="norm2")(x)
        x = x + scale("mlp_scale") * MLP(c, run, name="mlp")(y)
        x = constrain(x, "batch", "length", None)
        self.sow("intermediates", "hidden", x)
        return x, None


class SelfAttention(nn.Module):
    """Every token sees every token."""

    config: DINOv2Config
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        c, run = self.config, self.runtime
        heads = (*x.shape[:2], c.heads, c.width // c.heads)
        q, k, v = (Linear(c.width, c.qkv_bias, run, name=name)(x).reshape(heads) for name in "qkv")
        x = attention(q, k, v, kernel=run.attention).reshape(x.shape)
        return Linear(c.width, runtime=run, kernel_init=residual_init(c.layers), name="o")(x)


class MLP(nn.Module):
    """Linear, activation, linear; or with `swiglu`, silu(gate) * up, linear."""

    config: DINOv2Config
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [B, T, D] -> [B, T, D]
        c, run = self.config, self.runtime
        if c.swiglu:
            both = Linear((2, c.hidden), runtime=run, name="gate_up")(x)
            x = nn.silu(both[..., 0, :]) * both[..., 1, :]
        else:
            x = ACTIVATIONS[c.hidden_act](Linear(c.hidden, runtime=run, name="up")(x))
        x = constrain(x, "batch", "length", "act_mlp")
        return Linear(c.width, runtime=run, kernel_init=residual_init(c.layers), name="down")(x)


def resize_positions(position: Array, size: tuple[int, int], *, antialias: bool) -> Array:
    """Interpolates the trained grid of position embeddings to an image's grid of patches, bicubically in float32.

    Args:
      position: [1, 1 + G G, D]; the first belongs to the class token and stays.
      size: (h, w).
      antialias: which of PyTorch's two bicubic filters, see `resize_matrix`.

    Returns:
      [1, 1 + h w, D] in the dtype of `position`.
    """
    grid = int((position.shape[1] - 1) ** 0.5)
    if size == (grid, grid):
        return position
    d = position.shape[-1]
    rows, columns = (jnp.asarray(resize_matrix(grid, out, antialias=antialias)) for out in size)
    patch = position[0, 1:].reshape(grid, grid, d).astype(jnp.float32)
    patch = jnp.einsum("hi,wj,ijd->hwd", rows, columns, patch, precision="highest")
    patch = patch.reshape(1, size[0] * size[1], d).astype(position.dtype)
    return jnp.concatenate([position[:, :1], patch], axis=1)


def resize_matrix(n: int, out: int, *, antialias: bool) -> np.ndarray:
    """The matrix f32[out, n] by which PyTorch's bicubic `interpolate(align_corners=False)` resizes one axis.

    Without antialiasing, Keys' kernel with a = -0.75 is laid over the four nearest points, and points beyond the edge
    repeat it. With antialiasing, a = -0.5, the kernel widens with the step when shrinking, and points beyond the edge
    are left out, the others' weights summing to one.
    """
    step = n / out
    centre = (np.arange(out) + 0.5) * step - 0.5  # of each output point, on the axis of input points
    matrix = np.zeros((out, n))
    if antialias:
        widen = max(step, 1.0)
        matrix = _keys_kernel((np.arange(n) - centre[:, None]) / widen, a=-0.5)
        matrix /= matrix.sum(axis=1, keepdims=True)
    else:
        first = np.floor(centre).astype(int) - 1
        for tap in range(4):
            weight = _keys_kernel(first + tap - centre, a=-0.75)
            np.add.at(matrix, (np.arange(out), np.clip(first + tap, 0, n - 1)), weight)
    return matrix.astype(np.float32)


def _keys_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981): zero beyond distance 2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def example_inputs(config: DINOv2Config) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The smallest inputs that `init` accepts."""
    return (jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, config.channels), "float32"),)
