"""Convolutions whose kernel gradient is fast on a CPU too.

XLA hands the CPU's kernel gradient to a general routine that runs at a tenth of the speed of the convolution itself.
Written as matrix products over an image's rows it keeps up. Accelerators have their own; so do several devices that
share a batch, for which the partitioner would gather what is scanned here.

Every convolution works on whole images, spread over all devices as far as there are enough of them: left free to split
sides or channels, XLA's partitioner gets kernel gradients wrong (jax 0.10.2; twice too large on an idle mesh axis of
two, when sides are split over another).

Letters: B images, H/W sides, K side of the kernel, C channels in, F channels out.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.parallel.sharding import constrain

Array = jax.Array

_WHOLE = ("images", None, None, None)
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(
    x: Array, kernel: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated` for `flax.linen.Conv`: whole images, another gradient where that is faster."""
    side = kernel.shape[0]
    same = tuple(map(tuple, padding)) == ((side // 2, side // 2),) * 2 and side % 2 == 1
    if same and kernel.shape[:2] == (side, side) and tuple(strides) == (1, 1) and x.ndim == 4 and _one_cpu():
        return _same(x, kernel)
    y = jax.lax.conv_general_dilated(constrain(x, *_WHOLE), kernel, strides, padding, **options)
    return constrain(y, *_WHOLE)


def _one_cpu() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    platform = jax.default_backend() if device is None else device.platform
    return platform == "cpu" and (mesh.empty or mesh.size == 1)


@jax.custom_vjp
def _same(x: Array, kernel: Array) -> Array:  # [B, H, W, C], [K, K, C, F] -> [B, H, W, F]
    pad = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((pad, pad),) * 2, dimension_numbers=_LAYOUT)


def _same_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _same(x, kernel), (x, kernel)


def _same_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    grad_x = _same(grad, kernel[::-1, ::-1].swapaxes(2, 3))
    return grad_x, kernel_gradient(x, grad, kernel.shape[0]).astype(kernel.dtype)


_same.defvjp(_same_forward, _same_backward)


def kernel_gradient(x: Array, grad: Array, side: int) -> Array:
    """dK[i, j] = sum over images, rows r and columns w of padded_x[r + i, w + j]^T grad[r, w].

    One image at a time, so that what is laid side by side stays in the cache: K copies of the gradient, shifted by a
    row each, against the image shifted by j columns.

    Args:
      x: f[B, H, W, C].
      grad: f[B, H, W, F], of the output.
      side: K, odd.

    Returns:
      f32[K, K, C, F].
    """
    width, channels = x.shape[2:]
    features, pad = grad.shape[-1], side // 2

    def add_image(total: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        image, image_grad = item
        image = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        shifted = [jnp.pad(image_grad, ((i, side - 1 - i), (0, 0), (0, 0))) for i in range(side)]
        rows = jnp.concatenate(shifted, axis=-1).reshape(-1, side * features)  # [(H + K - 1) W, K F]
        columns = [image[:, j : j + width].reshape(-1, channels) for j in range(side)]
        parts = [jnp.matmul(column.T, rows, preferred_element_type=jnp.float32) for column in columns]
        return total + jnp.stack(parts), None

    total, _ = jax.lax.scan(add_image, jnp.zeros((side, channels, side * features)), (x, grad))
    return total.reshape(side, channels, side, features).transpose(2, 0, 1, 3)
