"""The layers every architecture shares: a linear layer that adapters reach, norms, activations, patches.

Letters: B batch, T length, D width in, F width out, R adapter rank, H/W height and width, C channels, P patch side.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.runtime import DType, Runtime

Array = jax.Array


class Linear(nn.Module):
    """y = x W + (x A) B + b, where A and B, if given, come from the `lora` collection.

    The adapter is applied to the activations, never to W, so the base weights are read as they are and a call
    without the `lora` collection is the reference model. `uae_jax.models.lora` makes the collection and has alpha/r
    folded into B.

    Attributes:
      features: output width, or several output axes, e.g. (3, D) for a fused query, key and value.
      use_bias: adds b of shape `features`.
      runtime: dtypes.
      out_dtype: type in which products are summed and y is returned, e.g. float32 for logits; None is `runtime.dtype`.
    """

    features: int | tuple[int, ...]
    use_bias: bool = True
    runtime: Runtime = Runtime()
    kernel_init: Callable = nn.initializers.lecun_normal()
    out_dtype: DType | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:  # [..., D] -> [..., *features]
        run = self.runtime
        features = self.features if isinstance(self.features, tuple) else (self.features,)
        width = x.shape[-1]
        x = x.astype(run.dtype)
        contract = functools.partial(jnp.tensordot, axes=1)

        def init_kernel(key, shape, dtype):
            # Initialised as a matrix: the fan-in is D, whatever the output axes.
            flat = self.kernel_init(key, (width, math.prod(features)), dtype)
            return flat.reshape(shape)

        kernel = self.param("kernel", init_kernel, (width, *features), run.param_dtype)
        y = contract(x, kernel.astype(run.dtype), preferred_element_type=self.out_dtype)
        if self.has_variable("lora", "a"):
            a = self.get_variable("lora", "a").astype(run.dtype)  # [D, R]
            b = self.get_variable("lora", "b").astype(run.dtype)  # [R, *features]
            y = y + contract(contract(x, a), b, preferred_element_type=self.out_dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, features, run.param_dtype)
            y = y + bias.astype(y.dtype)
        return y


def residual_init(depth: int) -> Callable:
    """Initialises what a branch adds to the residual stream: smaller by the root of the number of branches.

    Two branches in each of `depth` layers then add up to about the variance of one layer's input (GPT-2's rule).
    """
    return nn.initializers.variance_scaling(0.5 / depth, "fan_in", "truncated_normal")


def layer_norm(runtime: Runtime, epsilon: float, *, affine: bool = True, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm over the last axis; statistics in float32 by the two-pass formula, output in `runtime.dtype`."""
    return nn.LayerNorm(
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        dtype=runtime.dtype,
        param_dtype=runtime.param_dtype,
        name=name,
    )


def rms_norm(runtime: Runtime, epsilon: float, name: str | None = None) -> nn.RMSNorm:
    """RMSNorm over the last axis; mean square in float32, output in `runtime.dtype`."""
    return nn.RMSNorm(epsilon=epsilon, dtype=runtime.dtype, param_dtype=runtime.param_dtype, name=name)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
}


def rotate(x: Array, angles: Array) -> Array:
    """Turns the pairs (i, i + H/2) of every head by its angles, in float32 (rotary positions, arXiv 2104.09864).

    Args:
      x: [B, T, N, H], N heads of width H.
      angles: f32[B, T, H/2] in radians; B may be 1.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    one, two = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], axis=-1).astype(x.dtype)


def patches(image: Array, size: int) -> Array:  # [B, H, W, C] -> [B, H/P, W/P, P*P*C]
    """Cuts an image into squares, row by row, each flattened as (row, column, channel).

    A convolution with stride equal to its kernel is `Linear` over these; `uae_jax.weights.table.patch` reorders
    such a kernel.

    Raises:
      ValueError: if a side is not a multiple of `size`.
    """
    b, h, w, c = image.shape
    if h % size or w % size:
        raise ValueError(f"image is {h}x{w}, wanted multiples of the patch side {size}; resize or crop it first")
    x = image.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // size, w // size, size * size * c)
