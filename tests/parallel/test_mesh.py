"""Meshes of the four named axes."""

import dataclasses

import jax
import numpy as np
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


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU device as a mesh asks for."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"


def slices(*shapes: tuple[int, int, int], **more) -> list[Chip]:
    chips = []
    for index, (x, y, z) in enumerate(shapes):
        places = [(i, j, k) for k in range(z) for j in range(y) for i in range(x)]
        chips += [Chip(len(chips) + n, place, index, index, **more) for n, place in enumerate(places)]
    return chips


@pytest.mark.parametrize("kind", ["TPU v5p", "TPU v5 lite"])
def test_of_several_slices_data_goes_across(kind):
    mesh = make_mesh(data=-1, fsdp=4, devices=slices((2, 2, 2), (2, 2, 2), device_kind=kind))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert [{chip.slice_index for chip in part.flat} for part in mesh.devices] == [{0}, {0}, {1}, {1}]
    assert len(set(mesh.devices.flat)) == 16


def test_one_slice_is_laid_out_as_ever():
    one = slices((2, 2, 2))
    mesh = make_mesh(data=2, fsdp=4, devices=one)
    wanted = jax.make_mesh((2, 4, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4, devices=one)
    assert (mesh.devices == wanted.devices).all()


@pytest.mark.parametrize("count", [1, 2])
def test_a_slice_whose_sides_are_not_the_mesh_s_is_cut_into_blocks(count):
    # Eight chips are no product of whole sides of 4x4x4, the least slice of 64: they are neighbours all the same.
    mesh = make_mesh(data=-1, fsdp=8, devices=slices(*[(4, 4, 4)] * count))
    assert dict(mesh.shape) == {"data": 8 * count, "fsdp": 8, "tensor": 1, "sequence": 1}
    assert len(set(mesh.devices.flat)) == 64 * count
    for group in mesh.devices:
        assert len({chip.slice_index for chip in group.flat}) == 1
        places = np.array([chip.coords for chip in group.flat])
        assert sorted(np.ptp(places, axis=0) + 1) == [1, 2, 4]


def test_slices_that_data_does_not_split_over_are_refused():
    message = (
        "over 2 slices of 8 devices: data is 1, wanted a multiple of 2, with fsdp x tensor x sequence a divisor of 8"
    )
    with pytest.raises(ValueError, match=message):
        make_mesh(fsdp=-1, devices=slices((2, 2, 2), (2, 2, 2)))
    with pytest.raises(ValueError, match="unequal numbers of devices: slice 0 8, slice 1 7"):
        make_mesh(data=-1, devices=slices((2, 2, 2), (2, 2, 2))[:15])
