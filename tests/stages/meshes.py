"""Whether a stage's step is the same whatever the mesh: on one device, and split over eight."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from uae_jax.batching import place
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import AXES, make_mesh
from uae_jax.training.update import accumulated_gradients

MESHES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    pytest.param({"fsdp": 2, "tensor": 2, "sequence": 2}, marks=pytest.mark.exhaustive),
    *(pytest.param({axis: 8}, marks=pytest.mark.exhaustive) for axis in AXES),
]


def one_device() -> Any:
    return make_mesh(devices=jax.devices()[:1])


def gradients(
    stage: Any, mesh: Any, batch: Any, seed: int = 0, start: Any = None, nudge: bool = False
) -> tuple[Any, Any, Any]:
    """(loss, aux, gradient) of a freshly loaded stage on a mesh, on the host.

    Args:
      start: (params, state) to use in place of those that loading gives.
      nudge: moves every weight, trained or not, by one unit in its last place, up or down.
    """
    parts = stage.load(mesh)
    params, state = (parts.params, parts.state) if start is None else start
    frozen = parts.frozen
    if nudge:
        params, frozen = jax.tree.map(_nudged, (params, frozen))
    params = jax.device_put(params, sharding.shardings(params, parts.params_axes, mesh))
    if parts.state_axes is not None:
        state = jax.device_put(state, sharding.shardings(state, parts.state_axes, mesh))
    placed = jax.tree.map(lambda leaf: place(leaf, mesh), batch)
    step = jax.jit(functools.partial(accumulated_gradients, stage))
    with jax.set_mesh(mesh):
        loss, aux, grads = step(params, state, frozen, placed, jax.random.key(seed))
    return jax.tree.map(np.asarray, (loss, aux, grads))


def _nudged(leaf: Any) -> Any:
    if leaf.dtype != np.float32:
        return leaf
    up = np.random.default_rng(leaf.size).random(leaf.shape) < 0.5
    return np.nextafter(np.asarray(leaf), np.where(up, np.inf, -np.inf).astype(np.float32))


def relative(got: Any, wanted: Any) -> float:
    """||got - wanted|| / ||wanted|| over whole trees, in float64."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
    assert pairs
    difference = sum(np.square(np.float64(a) - np.float64(b)).sum() for a, b in pairs)
    return float(np.sqrt(difference / sum(np.square(np.float64(b)).sum() for _, b in pairs)))
