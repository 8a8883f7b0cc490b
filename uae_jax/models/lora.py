"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank adapters as a tree of their own.

An adapter tree mirrors the parameter tree at the linear layers that it adapts, with leaves `a` [D, R] and
`b` [R, *features] (both with a leading layer axis in a stack). `Linear` adds (x a) b to its output when it finds them
in the `lora` collection, so the base weights exist once, and a call without the collection is the reference policy:

    model.apply({"params": params, **collection(adapter, config)}, ...)   # the policy
    model.apply({"params": params}, ...)                                  # the reference
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from uae_jax.parallel.sharding import is_stacked

Tree = Any


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Which layers are adapted, and how strongly.

    Attributes:
      rank: R.
      alpha: the adapter's output is multiplied by alpha / rank.
      targets: regular expressions over module paths ("layers/attn/(q|k|v|o)"); each must match a whole path.
    """

    rank: int = 32
    alpha: float = 64.0
    targets: tuple[str, ...] = (r".*",)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_paths(params: Tree, config: LoRAConfig) -> list[str]:
    """Lists the linear layers that `config.targets` names, sorted.

    Raises:
      ValueError: if a pattern names no linear layer; says which there are.
    """
    linears = sorted(path for path, (inputs, _) in _linears(params).items() if inputs)
    chosen: set[str] = set()
    for pattern in config.targets:
        found = [path for path in linears if re.fullmatch(pattern, path)]
        if not found:
            raise ValueError(f"LoRA target {pattern!r} names no linear layer; there are {', '.join(linears)}")
        chosen.update(found)
    return sorted(chosen)


def init(key: jax.Array, params: Tree, config: LoRAConfig, dtype: Any = jnp.float32) -> Tree:
    """Makes an adapter that changes nothing yet: `a` gaussian with standard deviation 1 / rank, `b` zero (as PEFT's
    `init_lora_weights="gaussian"`).

    Args:
      key: PRNG key.
      params: arrays or `ShapeDtypeStruct`; only shapes are read.
      config: rank and targets.
      dtype: of the adapter; float32 even where the base is bfloat16, since it is what learns.
    """
    flat = {}
    shapes = _linears(params)
    for number, path in enumerate(target_paths(params, config)):
        inputs, features = shapes[path]
        leading, rank = inputs[:-1], config.rank
        noise = jax.random.normal(jax.random.fold_in(key, number), (*inputs, rank), dtype)
        flat[f"{path}/a"] = noise / rank
        flat[f"{path}/b"] = jnp.zeros((*leading, rank, *features), dtype)
    return traverse_util.unflatten_dict(flat, sep="/")


def collection(adapter: Tree | None, config: LoRAConfig | None) -> dict[str, Tree]:
    """The variables that turn the adapter on, alpha / rank folded into `b`; no adapter, no variables."""
    if adapter is None:
        return {}
    flat = traverse_util.flatten_dict(adapter, sep="/")
    scaled = {path: leaf * config.scale if path.endswith("/b") else leaf for path, leaf in flat.items()}
    return {"lora": traverse_util.unflatten_dict(scaled, sep="/")}


def merge(params: Tree, adapter: Tree, config: LoRAConfig) -> Tree:
    """Returns parameters with W + alpha/rank A B in place of W, computed in float32, in the dtype of W.

    Raises:
      ValueError: if the adapter does not fit the parameters; names the first leaf that does not.
    """
    return _add(params, adapter, config.scale)


def unmerge(params: Tree, adapter: Tree, config: LoRAConfig) -> Tree:
    """Undoes `merge`, up to rounding in the dtype of W."""
    return _add(params, adapter, -config.scale)


def logical_axes(adapter: Tree, axes: Tree) -> Tree:
    """Names an adapter's axes after those of the kernels it adapts; the rank stays whole."""
    names = traverse_util.flatten_dict(axes, sep="/")
    result = {}
    for leaf in traverse_util.flatten_dict(adapter, sep="/"):
        path, part = leaf.rsplit("/", 1)
        kernel = names[f"{path}/kernel"]
        stack = 1 if is_stacked(path) else 0
        if part == "a":
            result[leaf] = (*kernel[: stack + 1], None)
        else:
            result[leaf] = (*kernel[:stack], None, *kernel[stack + 1 :])
    return traverse_util.unflatten_dict(result, sep="/")


def _linears(params: Tree) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Module path -> (leading axes and input width, output axes), of every linear layer.

    A convolution's kernel has two window axes before its channels, which no `Linear` has outside a stack.
    """
    result = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if not path.endswith("/kernel"):
            continue
        split = 2 if is_stacked(path) else 1
        if len(leaf.shape) - split in (1, 2):  # one or two output axes
            result[path.removesuffix("/kernel")] = (leaf.shape[:split], leaf.shape[split:])
    return result


def _add(params: Tree, adapter: Tree, scale: float) -> Tree:
    flat = traverse_util.flatten_dict(params, sep="/")
    leaves = traverse_util.flatten_dict(adapter, sep="/")
    for path in {leaf.rsplit("/", 1)[0] for leaf in leaves}:
        kernel = flat.get(f"{path}/kernel")
        a, b = leaves[f"{path}/a"], leaves[f"{path}/b"]
        stack = 1 if is_stacked(path) else 0
        wanted = (*a.shape[: stack + 1], *b.shape[stack + 1 :])
        if kernel is None or kernel.shape != wanted:
            got = "no such layer" if kernel is None else f"kernel {list(kernel.shape)}"
            raise ValueError(f"adapter at {path} is for a kernel of {list(wanted)}, got {got}")
        flat[f"{path}/kernel"] = _merged(kernel, a, b, scale, stack)
    return traverse_util.unflatten_dict(flat, sep="/")


def _merged(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: float, stack: int) -> jax.Array:
    a32, b32 = a.astype(jnp.float32), b.astype(jnp.float32)
    flat_b = b32.reshape(*b.shape[: stack + 1], math.prod(b.shape[stack + 1 :]))
    delta = (a32 @ flat_b).reshape(kernel.shape)
    return (kernel.astype(jnp.float32) + scale * delta).astype(kernel.dtype)
