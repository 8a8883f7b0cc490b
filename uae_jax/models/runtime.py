"""How a model is computed, apart from what it is.

A model's own dataclass states facts (widths, depths); `Runtime` states choices that change speed and memory but not
the function: dtypes, rematerialisation, the attention kernel. `scan_layers` is the one way to stack equal layers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from uae_jax.models.attention import check_kernel

DType = Any

REMAT_POLICIES = {
    "none": None,  # keep every activation
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep matrix products, recompute the rest
    "full": jax.checkpoint_policies.nothing_saveable,  # keep only each layer's input
}


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Choices that leave the function the same.

    Attributes:
      dtype: type in which matrices are multiplied and activations held. Statistics, softmax and logits stay float32.
      param_dtype: type in which `init` makes parameters. Loading keeps its own `dtype` argument.
      remat: what the backward pass keeps of each scanned layer, a name in `REMAT_POLICIES`.
      attention: kernel, a name in `uae_jax.models.attention.KERNELS`; "auto" picks by platform and shape.

    Float32 operands are multiplied at the platform's default precision; `jax.default_matmul_precision` changes it.
    """

    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self):
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}, wanted one of {', '.join(REMAT_POLICIES)}")
        check_kernel(self.attention)


def scan_layers(layer: type[nn.Module], length: int, runtime: Runtime, in_axes: Any = nn.broadcast) -> type[nn.Module]:
    """Stacks `length` equal layers into one `lax.scan`, so that compile time does not grow with depth.

    The returned class takes the constructor arguments of `layer`. Give the instance a name that begins with
    "layers": its parameters and adapters carry a leading layer axis, and the sharding rules and the weight tables
    know a stack by that name.

    Args:
      layer: module whose `__call__(carry, *inputs)` returns `(carry, output)`.
      length: number of layers.
      runtime: supplies the rematerialisation policy.
      in_axes: per input, `nn.broadcast` for the same value in every layer, 0 for a leading layer axis.
    """
    if REMAT_POLICIES[runtime.remat] is not None:
        layer = nn.remat(layer, policy=REMAT_POLICIES[runtime.remat], prevent_cse=False)
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
    )
