"""One table per architecture says where each parameter is published, and how it is laid out there.

An `Entry` pairs a path in our tree with a key in the published file and a `Layout` with both directions. A path under
a scanned stack pairs with one key per layer. Loading and saving (`uae_jax.weights.transfer`) and adapters
(`uae_jax.weights.peft`) all read this table; nothing else knows a published name.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Array = Any  # np.ndarray or jax.Array


@dataclasses.dataclass(frozen=True)
class Layout:
    """The two directions between a published tensor and one layer of a parameter.

    Both use only methods that NumPy arrays and JAX tracers share, so that shapes can be found without data.
    """

    to_native: Callable[[Array], Array]
    to_published: Callable[[Array], Array]


SAME = Layout(lambda w: w, lambda w: w)
LINEAR = Layout(lambda w: w.T, lambda w: w.T)  # [F, D] <-> [D, F]
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))  # [O, I, H, W] <-> [H, W, I, O]


def fused(parts: int) -> Layout:
    """A linear layer with `parts` outputs side by side: weight [n F, D] <-> kernel [D, n, F]."""
    return Layout(
        lambda w: w.T.reshape(w.shape[1], parts, w.shape[0] // parts),
        lambda w: w.reshape(w.shape[0], w.shape[1] * w.shape[2]).T,
    )


def fused_bias(parts: int) -> Layout:
    """The bias of `fused`: [n F] <-> [n, F]."""
    return Layout(lambda b: b.reshape(parts, b.shape[0] // parts), lambda b: b.reshape(b.shape[0] * b.shape[1]))


def patch(channels: int, size: int) -> Layout:
    """A convolution with stride = kernel <-> `Linear` over `models.layers.patches`: [O, C, P, P] <-> [P P C, O]."""
    return Layout(
        lambda w: w.transpose(2, 3, 1, 0).reshape(size * size * channels, w.shape[0]),
        lambda w: w.reshape(size, size, channels, w.shape[1]).transpose(3, 2, 0, 1),
    )


def flat_patch(*window: int) -> Layout:
    """A convolution over patches that arrive flattened in its own order: [O, *window] <-> [prod(window), O]."""
    return Layout(
        lambda w: w.reshape(w.shape[0], math.prod(window)).T,
        lambda w: w.T.reshape(w.shape[1], *window),
    )


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter's place in the published layout.

    Attributes:
      path: its path in the native tree, e.g. "layers/attn/q/kernel".
      key: the published key; for a stack, with "{}" where the layer number stands.
      layout: how one layer of it is laid out.
      layers: for a stack, the published number of each layer in order; None for a single tensor.
    """

    path: str
    key: str
    layout: Layout = SAME
    layers: tuple[int, ...] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The published keys, one per layer."""
        return (self.key,) if self.layers is None else tuple(self.key.format(i) for i in self.layers)


def linear(path: str, key: str, *, bias: bool = True, layers: Sequence[int] | None = None) -> list[Entry]:
    """Entries of a `Linear`: kernel, and bias unless told otherwise."""
    return module(path, key, {"kernel": ("weight", LINEAR)} | ({"bias": ("bias", SAME)} if bias else {}), layers)


def norm(path: str, key: str, *, bias: bool = True, layers: Sequence[int] | None = None) -> list[Entry]:
    """Entries of a norm: scale, and bias unless told otherwise."""
    return module(path, key, {"scale": ("weight", SAME)} | ({"bias": ("bias", SAME)} if bias else {}), layers)


def conv(path: str, key: str) -> list[Entry]:
    """Entries of a 2-D convolution with bias."""
    return module(path, key, {"kernel": ("weight", CONV), "bias": ("bias", SAME)}, None)


def module(
    path: str, key: str, parameters: dict[str, tuple[str, Layout]], layers: Sequence[int] | None = None
) -> list[Entry]:
    """Entries of any module: native name -> (published name, layout)."""
    numbers = None if layers is None else tuple(layers)
    return [
        Entry(f"{path}/{native}", f"{key}.{published}", layout, numbers)
        for native, (published, layout) in parameters.items()
    ]


Table = Iterable[Entry]
