"""The device mesh: four named axes, every one of them always present."""

import collections
import contextlib
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "sequence")
# An axis of the torus may serve two of the mesh's where no whole ones will do: fsdp=8 on 4x4x4 is then blocks of 4x2.
# jax.make_mesh refuses that but on v5e.
_SPLIT = True


def make_mesh(data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1, devices=None) -> Mesh:
    """Lays devices out on the axes (data, fsdp, tensor, sequence); at most one of them may be -1, "the rest".

    Args:
      data: copies of the parameters; each works on its own part of the batch.
      fsdp: parts that parameters are split into over their widths; the batch is split over it too.
      tensor: parts of heads and hidden widths.
      sequence: parts of the token axis.
      devices: defaults to all devices. Where they belong to several TPU slices, `data` is what goes across.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or slices do not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = mesh_sizes(len(devices), data, fsdp, tensor, sequence)
    if devices[0].platform == "tpu":  # neighbours on the mesh should be neighbours on the torus
        if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
            return _make_mesh_of_slices(sizes, devices)
        shape = tuple(sizes.values())
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=_SPLIT), AXES)
    return Mesh(np.asarray(devices).reshape(tuple(sizes.values())), AXES)


def _make_mesh_of_slices(sizes: dict[str, int], devices: list) -> Mesh:
    """The mesh of several TPU slices, whose parts of `data` are a slice each: the network between them is slow."""
    members = collections.Counter(device.slice_index for device in devices)
    count = len(members)
    if len(set(members.values())) > 1:
        shown = ", ".join(f"slice {index} {held}" for index, held in sorted(members.items()))
        raise ValueError(f"slices hold unequal numbers of devices: {shown}; wanted as many of each")
    if sizes["data"] % count:
        within = len(devices) // count
        shown = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"mesh {shown} does not split over {count} slices of {within} devices: data is {sizes['data']}, wanted a "
            f"multiple of {count}, with fsdp x tensor x sequence a divisor of {within}"
        )
    array = mesh_utils.create_hybrid_device_mesh(
        (sizes["data"] // count, *(sizes[name] for name in AXES[1:])),
        (count, *(1 for _ in AXES[1:])),
        devices,
        allow_split_physical_axes=_SPLIT,
    )
    return Mesh(array, AXES)


def abstract_mesh(count: int, **sizes: int) -> AbstractMesh:
    """The mesh of so many devices that need not be there; other arguments as `make_mesh`."""
    return AbstractMesh(tuple(mesh_sizes(count, **sizes).values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def use_mesh(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager:
    """Makes a mesh the one that constraints are about, inside the `with` block."""
    return jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, AbstractMesh) else jax.set_mesh(mesh)


def mesh_sizes(count: int, data: int = 1, fsdp: int = 1, tensor: int = 1, sequence: int = 1) -> dict[str, int]:
    """The size of every axis, for `count` devices; arguments and errors as `make_mesh`."""
    sizes = dict(zip(AXES, (data, fsdp, tensor, sequence), strict=True))
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh axis {name} is {size}, wanted a positive number, or -1 for the rest")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh axes {', '.join(open_axes)} are all -1; only one can take the remaining devices")
    if open_axes:
        known = math.prod(size for size in sizes.values() if size != -1)
        if count % known:
            shown = " x ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"mesh {shown} needs a multiple of {known} devices, got {count}; set other sizes of axes")
        sizes[open_axes[0]] = count // known
    if math.prod(sizes.values()) != count:
        shown = " x ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(f"mesh {shown} needs {math.prod(sizes.values())} devices, got {count}; -1 takes the rest")
    return sizes
