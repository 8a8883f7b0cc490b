"""That gradients are reduced over copies of the weights once per update in the program that a TPU runs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.parallel.test_replicas import LAYERS, gradient
from uae_jax.parallel.mesh import make_mesh, use_mesh
from uae_jax.plan import compiling, topologies
from uae_jax.plan.collectives import collectives

WIDTH = 256


@pytest.mark.slow
@pytest.mark.parametrize("apart", [True, False])
def test_copies_are_reduced_behind_all_loops(apart):
    """Left to itself, the compiler reduces in every layer of every micro-batch."""
    topology = topologies.parse("v5p:2x2x2")
    if why := compiling.missing(topology):
        pytest.skip(f"{why}; this takes the extra `plan`")
    mesh = make_mesh(8, devices=compiling.devices(topology))

    def on(*names, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*names)))

    w, x = on(shape=(LAYERS, WIDTH, WIDTH)), on(("data", "fsdp"), None, shape=(256, WIDTH))
    with use_mesh(mesh):
        hlo = jax.jit(lambda w, x: gradient(w, x, apart)).lower(w, x).compile().as_text()
    found = collectives(hlo)
    assert max(each.largest for each in found) >= 4 * WIDTH**2  # gradients are among them
    assert (sum(each.in_loops for each in found) == 0) == apart
