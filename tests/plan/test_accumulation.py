"""That gradients are reduced over copies of the weights once per update, however many micro-batches it has."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.training import toy
from uae_jax.parallel.mesh import make_mesh, use_mesh
from uae_jax.plan import compiling, topologies
from uae_jax.training.update import accumulated_gradients

WIDTH = 1024


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_copies_are_reduced_behind_the_loop_over_micro_batches(data, fsdp):
    """The partitioner puts an all-reduce into the loop; the TPU compiler moves it behind it.

    What is split over "fsdp" is reduced to its owners for each micro-batch, since no chip has room for all of it.
    """
    topology = topologies.parse("v5p:2x2x2")
    if why := compiling.missing(topology):
        pytest.skip(f"{why}; this takes the extra `plan`")
    mesh = make_mesh(data, fsdp, devices=compiling.devices(topology))
    stage = toy.Toy(toy.Settings(width=WIDTH))

    def on(*names, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*names)))

    params = {"linear": {"kernel": on("fsdp", None, shape=(WIDTH, 2)), "bias": on(None, shape=(2,))}}
    rows = ("data", "fsdp")
    batch = {"x": on(rows, None, shape=(64, WIDTH)), "y": on(rows, None, shape=(64, 2))}

    def gradients(params, batch):
        state = type("State", (), {"params": params, "stage": {"seen": jnp.zeros(())}})
        return accumulated_gradients(stage, state, {}, batch, jax.random.key(0), 4)[2]

    with use_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, params)
        hlo = jax.jit(gradients, out_shardings=places).lower(params, batch).compile().as_text()
    computations = {text.strip().split(" ")[0].lstrip("%"): text for text in hlo.split("\n\n")}
    bodies = re.findall(r"while\(.*body=%?([\w.-]+)", hlo)
    assert bodies  # the loop is there, and was not unrolled
    kernel = re.compile(rf"f32\[{WIDTH // fsdp},2\]\S* .*all-reduce(-start)?\(")
    assert not any(kernel.search(computations[body]) for body in bodies)
    assert kernel.search(hlo)
