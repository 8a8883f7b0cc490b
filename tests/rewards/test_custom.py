"""Rewards of a user's own: found by their path, and an error is an error."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import several
from uae_jax.batching import place
from uae_jax.parallel import replicas
from uae_jax.parallel.mesh import make_mesh
from uae_jax.rewards import custom

IMAGES = jnp.full((2, 4, 4, 3), 0.5)


def brightness(reference, reconstruction):
    """Found by its path, below."""
    return 1 - jnp.abs(reconstruction.mean((1, 2, 3)) - reference.mean((1, 2, 3)))


@custom.on_host
def host_brightness(reference, reconstruction):
    assert isinstance(reference, np.ndarray)
    return 1 - np.abs(reconstruction.mean((1, 2, 3)) - reference.mean((1, 2, 3)))


def test_a_function_is_found_by_its_path():
    assert custom.find("tests.rewards.test_custom.brightness") is not None
    found = custom.find(f"{__name__}.brightness")
    np.testing.assert_allclose(found(IMAGES, IMAGES * 0.5), 0.75)


@pytest.mark.parametrize(
    "path, message",
    [
        ("sharpness", "wanted a dotted path"),
        ("no_such_package.sharpness", "no_such_package cannot be imported"),
        ("numpy.no_such_function", "numpy has no function 'no_such_function'"),
        ("numpy.pi", "numpy has no function 'pi'"),
    ],
)
def test_a_path_that_leads_nowhere_says_where_it_ends(path, message):
    with pytest.raises(ValueError, match=message):
        custom.find(path)


def test_a_function_of_numpy_arrays_runs_inside_a_compiled_program():
    got = jax.jit(lambda a, b: host_brightness(a, b) * 2)(IMAGES, IMAGES * 0.5)
    np.testing.assert_allclose(got, 1.5)


def test_every_copy_of_the_weights_is_told_of_its_own_rows():
    mesh, rows = make_mesh(data=4, fsdp=2), jnp.linspace(0.1, 0.8, 8)[:, None, None, None] * jnp.ones((8, 4, 4, 3))

    def loss(_, rows):
        value = host_brightness(jnp.ones_like(rows), rows)
        return value.mean(), value

    with jax.set_mesh(mesh):
        mean, value = jax.jit(lambda x: replicas.on_each(loss, {}, x))(place(rows, mesh))
    np.testing.assert_allclose(value, rows[:, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(mean, 0.45, rtol=1e-6)


def test_nothing_is_differentiated_on_the_host():
    gradient = jax.grad(lambda x: host_brightness(IMAGES, x).sum() + x.sum())(IMAGES)
    np.testing.assert_array_equal(gradient, 1)


def raises(*_):
    raise ConnectionError("no answer from the server")


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda a, b: None, "returned None, wanted"),
        (lambda a, b: np.zeros(1), r"returned shape \(1,\), wanted \(2,\)"),  # would be broadcast silently
        (lambda a, b: 0.5, r"returned shape \(\), wanted \(2,\)"),
        (lambda a, b: np.array([0.1, np.nan]), "wanted finite numbers"),
        (lambda a, b: np.array(["good", "bad"]), "wanted finite numbers"),
        (raises, "no answer from the server"),
    ],
)
def test_what_is_no_reward_ends_the_program(function, message):
    reward = custom.on_host(function)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(jax.jit(reward)(IMAGES, IMAGES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "calls", "copies"),
    [
        ({"data": 2}, [[2], [2]], []),
        ({"tensor": 2}, [[4], []], []),
        ({"data": 2, "tensor": 2}, [[2], [2]], ["COPIES"]),
        ({"fsdp": 2, "tensor": 2}, [[2], [2]], ["COPIES"]),
    ],
)
def test_several_processes_are_told_the_same(mesh, calls, copies, tmp_path):
    # Left to itself, JAX calls on process 0 only, and the others go on with zeros. Where both processes have the same
    # rows, one of them asks: two calls need not agree.
    several.run(
        ["tests.rewards.host_process", json.dumps(mesh), *copies],
        2,
        tmp_path,
        devices=math.prod(mesh.values()) // 2,
        seconds=300,
    )
    lines = [several.said(tmp_path, index).splitlines() for index in range(2)]  # with what gloo says among them
    told = [json.loads(next(line for line in some if line.startswith("{"))) for some in lines]
    assert [one["reward"] for one in told] == [[0.1, 0.2, 0.3, 0.4]] * 2
    assert [one["calls"] for one in told] == calls
