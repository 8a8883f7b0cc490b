"""Runs a stage's loss as the loop does: prepared, differentiated, on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from uae_jax import batching
from uae_jax.parallel.mesh import make_mesh
from uae_jax.training.update import accumulated_gradients

# Compiling takes longer than running here, so ask for the function and not for its speed.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def one_device() -> Mesh:
    return make_mesh(devices=jax.devices()[:1])


@dataclasses.dataclass
class Running:
    """A loaded stage and its compiled gradient."""

    stage: Any
    parts: Any
    mesh: Mesh
    program: Any

    def place(self, samples) -> Any:
        """A batch, split over the mesh."""
        return jax.tree.map(lambda leaf: batching.place(leaf, self.mesh), self.stage.collate(samples))

    def on(self, batch, key=0, params=None) -> tuple[float, Any, Any]:
        """Loss, aux and gradient of a batch on the mesh."""
        params = self.parts.params if params is None else params
        with jax.set_mesh(self.mesh):
            loss, aux, gradient = self.program(params, self.parts.frozen, batch, jax.random.key(key))
        return float(loss), aux, gradient

    def __call__(self, samples, key=0, params=None) -> tuple[float, Any, Any]:
        """Loss, aux and gradient of samples."""
        return self.on(self.place(samples), key, params)


def start(stage, mesh=None, accumulate=1) -> Running:
    """Loads a stage; its batches are taken in so many micro-batches."""
    mesh = mesh or one_device()
    with jax.set_mesh(mesh):
        parts = stage.load(mesh)

    def run(params, frozen, batch, key):
        batch, _ = stage.prepare(params, {}, frozen, batch, key)
        return accumulated_gradients(stage, params, {}, frozen, batch, key, accumulate)

    return Running(stage, parts, mesh, jit(run))


def flat(tree) -> dict[str, np.ndarray]:
    """Path -> f64 array."""
    return {path: np.asarray(x, np.float64) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}


def difference(got, wanted) -> float:
    """||got - wanted|| / ||wanted|| over all leaves of two trees."""
    got, wanted = flat(got), flat(wanted)
    assert got.keys() == wanted.keys()
    error = sum(((got[path] - wanted[path]) ** 2).sum() for path in wanted)
    return float((error / sum((x**2).sum() for x in wanted.values())) ** 0.5)
