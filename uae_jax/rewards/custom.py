"""Rewards that users write, named by their dotted path: `--config.settings.reward=... function="my.module.sharpness"`.

Such a function takes (reference, reconstruction), f32[B, H, W, 3] in [0, 1] each, and returns f32[B] in [-1, 1]. It is
compiled into the step, so it is written in `jax.numpy`. One that cannot be, since it calls another framework or a
server, is marked `@on_host`: it is called with numpy arrays, once per batch, while the device waits (of several
processes, each calls it with the rows of each of its devices), and what it returns is checked there: an exception, a
wrong length or a value that is no number ends the run by its own name.
"""

import functools
import importlib
from collections.abc import Callable

import jax
import numpy as np

from uae_jax.parallel import sharding

RewardFunction = Callable[[jax.Array, jax.Array], jax.Array]


def on_host(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> RewardFunction:
    """Makes a reward of a function of numpy arrays; no gradient flows through it."""
    name = f"{function.__module__}.{function.__qualname__}"

    def checked(reference: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
        got = function(np.asarray(reference), np.asarray(reconstruction))
        value = None if got is None else np.asarray(got)
        if value is None or value.shape != (len(reference),):
            shown = "None" if value is None else f"shape {value.shape}"
            raise ValueError(f"reward {name} returned {shown}, wanted ({len(reference)},): one number per pair")
        if not (np.issubdtype(value.dtype, np.number) and np.isfinite(value).all()):
            raise ValueError(f"reward {name} returned {value}, wanted finite numbers")
        return value.astype(np.float32)

    @functools.wraps(function)
    def traced(reference: jax.Array, reconstruction: jax.Array) -> jax.Array:
        reference, reconstruction = jax.lax.stop_gradient((reference, reconstruction))
        if jax.process_count() > 1:
            return _on_own_hosts(checked, reference, reconstruction)
        return _called(checked, reference, reconstruction)

    return traced


def _called(function: Callable, reference: jax.Array, reconstruction: jax.Array) -> jax.Array:
    def once(reference: np.ndarray, reconstruction: np.ndarray) -> np.ndarray:
        """Copies of the weights (`uae_jax.parallel.replicas`) have one more axis, and their rows are asked together."""
        pairs = (np.asarray(images).reshape(-1, *images.shape[-3:]) for images in (reference, reconstruction))
        return function(*pairs).reshape(reference.shape[:-3])

    kind = jax.ShapeDtypeStruct(reference.shape[:1], np.float32)
    return jax.pure_callback(once, kind, reference, reconstruction, vmap_method="broadcast_all")


def _on_own_hosts(function: Callable, reference: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Has every process call the function on its own rows: JAX would have one call it, and give the others zeros."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = sharding.partition_spec(reference.shape[:1], ("batch",), mesh)
    several = (axis for axis in mesh.axis_names if sharding.axis_size(mesh, axis) > 1)
    others = tuple(axis for axis in several if axis not in (rows[0] or ()))

    def once(reference: jax.Array, reconstruction: jax.Array) -> jax.Array:
        """Devices that have the same rows take what one of them was told, as no two calls need agree."""
        first = sum(jax.lax.axis_index(name) for name in others) == 0
        nothing = jax.numpy.zeros(reference.shape[:1], np.float32)
        value = jax.lax.cond(first, lambda: _called(function, reference, reconstruction), lambda: nothing)
        return jax.lax.psum(value, others)

    return jax.shard_map(once, in_specs=(rows, rows), out_specs=rows, check_vma=False)(reference, reconstruction)


def find(path: str) -> RewardFunction:
    """Imports a function by its dotted path.

    Raises:
      ValueError: if there is none; says which part of the path is missing.
    """
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"reward function is {path!r}, wanted a dotted path, as my_package.rewards.sharpness")
    try:
        there = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"reward function {path!r}: {module} cannot be imported ({error})") from None
    function = getattr(there, name, None)
    if not callable(function):
        raise ValueError(f"reward function {path!r}: {module} has no function {name!r}")
    return function
