"""Models without their numbers: inside `shapes_only`, what is opened has its shapes and dtypes and reads no weights.

For who plans a run: under `jax.eval_shape` the zeros that stand for parameters take no memory, so that a stage can be
loaded at full size anywhere. What is not there yet (a folder that an earlier stage will write, a download) is replaced
by a stand-in.
"""

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from uae_jax.weights import checkpoint
from uae_jax.weights.errors import WeightsError

Opened = TypeVar("Opened")
StandIn = Callable[[str, str], Any]  # (name, "uae" or "model") -> `UAEWeights` or `Pretrained`

_stand_in: contextvars.ContextVar[StandIn | None] = contextvars.ContextVar("stand_in", default=None)


@contextlib.contextmanager
def shapes_only(stand_in: StandIn) -> Iterator[None]:
    """Opens models by their shapes inside the `with` block, which belongs under `jax.eval_shape`.

    Args:
      stand_in: makes what is opened under a name that is not there.
    """
    token = _stand_in.set(stand_in)
    try:
        yield
    finally:
        _stand_in.reset(token)


def tried(opens: Callable[[], Opened]) -> Opened:
    """What a function opens, by its shapes; raises what it would, having read no weights."""
    found = []
    with shapes_only(_absent):
        jax.eval_shape(lambda: found.append(opens()))
    return found[0]


def _absent(name: str, kind: str) -> Any:
    raise WeightsError(f"{name}: no {kind} there")


def active() -> bool:
    """Whether models are opened by their shapes."""
    return _stand_in.get() is not None


def instead_of(name: str | os.PathLike, kind: str) -> Any | None:
    """What stands in for a model; None where it is to be opened as ever.

    Args:
      name: folder or hub name.
      kind: "uae" for a folder of all parts, "model" for one model.
    """
    stand_in = _stand_in.get()
    if stand_in is None or is_there(name, kind):
        return None
    return stand_in(str(name), kind)


def is_there(name: str | os.PathLike, kind: str) -> bool:
    """Whether a model can be opened without a network; arguments as `instead_of`."""
    try:
        folder = checkpoint.resolve(name, offline=True)
    except WeightsError:
        return False
    parts = ("llm_model", "dit") if kind == "uae" else ()
    return (folder / checkpoint.UAE_NATIVE).is_file() or all((folder / part).is_dir() for part in parts)


def zeros(abstract: Any, dtype: Any = None) -> Any:
    """Zeros in the place of a tree of `ShapeDtypeStruct`, floating ones in `dtype` if it is given."""

    def one(leaf: Any) -> jax.Array:
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros(leaf.shape, leaf.dtype if dtype is None or not floats else dtype)

    return jax.tree.map(one, abstract)
