"""Meshes of the four named axes."""

import jax
import pytest
from jax.sharding import AxisType

from uae_jax.parallel.mesh import AXES, make_mesh


def test_sizes_in_order():
    mesh = make_mesh(2, 1, 4)
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor", "sequence")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4, "sequence": 1}
    # The last axis varies fastest: neighbours in number are neighbours on tensor.
    assert [device.id for device in mesh.devices[0, 0, :, 0]] == [device.id for device in jax.devices()[:4]]


def test_axes_are_automatic():
    # The default of jax.make_mesh, Explicit, makes linen's embedding fail.
    assert set(make_mesh(8).axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ({"data": -1}, (8, 1, 1, 1)),
        ({"fsdp": -1, "tensor": 2}, (1, 4, 2, 1)),
        ({"data": 2, "fsdp": 2, "tensor": 2, "sequence": -1}, (2, 2, 2, 1)),
    ],
)
def test_minus_one_is_the_rest(sizes, wanted):
    assert tuple(make_mesh(**sizes).shape.values()) == wanted


def test_some_of_the_devices():
    mesh = make_mesh(fsdp=-1, devices=jax.devices()[2:6])
    assert mesh.shape["fsdp"] == 4 and set(mesh.devices.flat) == set(jax.devices()[2:6])
    assert make_mesh(devices=jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({}, "mesh data 1 x fsdp 1 x tensor 1 x sequence 1 needs 1 devices, got 8"),
        ({"data": 16}, "mesh data 16 x fsdp 1 x tensor 1 x sequence 1 needs 16 devices, got 8"),
        ({"data": 3, "fsdp": -1}, "mesh data 3 x fsdp -1 x tensor 1 x sequence 1 needs a multiple of 3 devices, got 8"),
        ({"data": 16, "fsdp": -1}, "needs a multiple of 16 devices, got 8"),
        ({"data": -1, "tensor": -1}, "mesh axes data, tensor are all -1; only one can take the remaining devices"),
    ],
)
def test_sizes_that_do_not_multiply_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(**sizes)


@pytest.mark.parametrize("size", [0, -2])
def test_sizes_that_are_none_are_refused(size):
    for rest in ({}, {"fsdp": -1}, {"fsdp": 8}):
        with pytest.raises(ValueError, match=f"mesh axis data is {size}, wanted a positive number, or -1 for the rest"):
            make_mesh(data=size, **rest)
