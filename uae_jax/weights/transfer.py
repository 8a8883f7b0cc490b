"""Moves parameters between a published checkpoint and a native tree, one tensor at a time.

Everything is checked against the table before the first byte is read: `check` gathers every unread key, unfilled
parameter and clash into one error.
"""

import collections
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from uae_jax.parallel import global_arrays
from uae_jax.weights import shapes_only
from uae_jax.weights.errors import WeightsError, gathered
from uae_jax.weights.safetensors import Tensor
from uae_jax.weights.table import Entry, Table

Progress = Callable[[int], None]
_SMALL = 16 * 2**20  # bytes; of stacks that the host puts together, for which nothing need be compiled


def published_shapes(table: Table, params: Any, dtype: Any = None) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The shape and dtype of every published key, from a native tree of arrays or `ShapeDtypeStruct`.

    Args:
      dtype: of all of them; None: each has its own.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    result = {}
    for entry in table:
        leaf = flat[entry.path]
        shape = leaf.shape if entry.layers is None else leaf.shape[1:]
        one = jax.eval_shape(entry.layout.to_published, jax.ShapeDtypeStruct(shape, leaf.dtype))
        result.update({key: (one.shape, np.dtype(dtype or leaf.dtype)) for key in entry.keys})
    return result


def check(table: Table, tensors: Mapping[str, Tensor], abstract: Any, source: str) -> None:
    """Accounts for every key and every parameter.

    Args:
      table: the architecture's entries.
      tensors: what the checkpoint holds, under canonical keys.
      abstract: the native tree as `ShapeDtypeStruct`.
      source: the checkpoint, for the message.

    Raises:
      WeightsError: naming all unfilled parameters, unread keys and clashes with both shapes.
    """
    table = list(table)
    parameters = set(traverse_util.flatten_dict(abstract, sep="/"))
    paths = [entry.path for entry in table]
    keys = collections.Counter(key for entry in table for key in entry.keys)
    if twice := sorted(key for key, count in keys.items() if count > 1):
        raise WeightsError(f"weight table gives two parameters one key: {', '.join(twice)}")
    if parameters != set(paths) or len(paths) != len(parameters):
        wrong = sorted(parameters.symmetric_difference(paths)) or sorted({p for p in paths if paths.count(p) > 1})
        raise WeightsError(f"weight table and model disagree on {', '.join(wrong)}")
    wanted = published_shapes(table, abstract)
    owner = {key: entry.path for entry in table for key in entry.keys}
    problems = [
        f"missing: {key} {list(wanted[key][0])}, needed for {owner[key]}" for key in wanted if key not in tensors
    ]
    problems += [f"unexpected: {key} {list(tensors[key].shape)}" for key in tensors if key not in wanted]
    for key, (shape, dtype) in wanted.items():
        if key not in tensors:
            continue
        tensor = tensors[key]
        if tensor.shape != shape:
            problems.append(f"shape: {key} in {tensor.file}: got {list(tensor.shape)}, wanted {list(shape)}")
        elif not (_is_float(tensor.dtype) and _is_float(dtype)) and tensor.dtype != dtype:
            problems.append(f"dtype: {key} in {tensor.file}: got {tensor.dtype}, wanted {_wanted(dtype)}")
    if problems:
        raise gathered(source, problems)


def _is_float(dtype: Any) -> bool:
    """Whether a dtype holds weights as they are; 8-bit floats come with scales, which no table knows."""
    return jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize > 1


def _wanted(dtype: Any) -> str:
    return "a floating type of 16 bits or more" if _is_float(dtype) else str(np.dtype(dtype))


def load(
    table: Table,
    tensors: Mapping[str, Tensor],
    abstract: Any,
    *,
    source: str,
    dtype: Any = None,
    shardings: Any = None,
    progress: Progress | None = None,
) -> Any:
    """Fills a native tree from a checkpoint, tensor by tensor, straight into its sharding.

    A stack is allocated once on the devices and filled in place, so the host never holds more than about one
    published tensor. Only small stacks are put together on the host.

    Args:
      table: the architecture's entries.
      tensors: what the checkpoint holds, under canonical keys.
      abstract: the native tree as `ShapeDtypeStruct`.
      source: the checkpoint, for messages.
      dtype: of the result; None keeps each tensor's own, and gives a stack of several the one that holds them all.
      shardings: a tree of `NamedSharding` like `abstract`; None for the default device.
      progress: called with the bytes read, after each tensor.

    Returns:
      A nested dict of arrays.

    Raises:
      WeightsError: see `check`; nothing has been allocated then.
    """
    table = list(table)
    check(table, tensors, abstract, source)
    if shapes_only.active():
        dtypes = {entry.path: target_dtype([tensors[key].dtype for key in entry.keys], dtype) for entry in table}
        leaves = traverse_util.flatten_dict(abstract, sep="/")
        return traverse_util.unflatten_dict({p: jnp.zeros(leaves[p].shape, dtypes[p]) for p in leaves}, sep="/")
    placed = {} if shardings is None else traverse_util.flatten_dict(shardings, sep="/")
    flat = {}
    for entry in table:
        flat[entry.path] = _load_entry(entry, tensors, dtype, placed.get(entry.path), progress)
    return traverse_util.unflatten_dict(flat, sep="/")


def _load_entry(
    entry: Entry, tensors: Mapping[str, Tensor], dtype: Any, sharding: Any, progress: Progress | None
) -> jax.Array:
    target = target_dtype([tensors[key].dtype for key in entry.keys], dtype)

    def fetch(key: str) -> np.ndarray:
        array = tensors[key].read()
        if progress is not None:
            progress(array.nbytes)
        # Order and dtype in one copy. (`ascontiguousarray` would give a scalar an axis.)
        return np.asarray(entry.layout.to_native(array), dtype=target, order="C")

    if entry.layers is None:
        return put(fetch(entry.key), sharding)
    one = None if sharding is None else jax.sharding.NamedSharding(sharding.mesh, _drop_first(sharding.spec))
    layer = fetch(entry.keys[0])
    if len(entry.layers) * layer.nbytes <= _SMALL:
        return put(np.stack([layer, *map(fetch, entry.keys[1:])]), sharding)
    stack = _program_of_zeros((len(entry.layers), *layer.shape), target, sharding)()
    set_layer = _set_layer(sharding)
    for i, key in enumerate(entry.keys):
        stack = set_layer(stack, put(fetch(key) if layer is None else layer, one), i)
        layer = None
        stack.block_until_ready()  # so that one tensor is in flight, not all of them
    return stack


def target_dtype(stored: Sequence[Any], wanted: Any) -> np.dtype:
    """The dtype of a parameter whose layers are stored as `stored`: the wanted one, or None for their common one."""
    common = functools.reduce(jnp.promote_types, stored)
    if wanted is not None and _is_float(common):
        common = wanted
    return np.dtype(jax.dtypes.canonicalize_dtype(common))  # float64 is float32 unless JAX is told otherwise


def put(array: np.ndarray, sharding: Any) -> jax.Array:
    """Moves an array to the default device, or each device's part of it to a sharding's devices."""
    if sharding is None or shapes_only.active():
        return jax.device_put(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.cache
def _program_of_zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: Any) -> Callable[[], jax.Array]:
    """What makes zeros where they belong; kept, so that stacks of one shape share it."""
    return jax.jit(functools.partial(jnp.zeros, shape, dtype), out_shardings=sharding)


@functools.cache
def _set_layer(sharding: Any) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Writes a layer into a stack where it stands: the donated buffer is the result's."""

    def update(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)

    return jax.jit(update, donate_argnums=0, out_shardings=sharding)


def _drop_first(spec: jax.sharding.PartitionSpec) -> jax.sharding.PartitionSpec:
    if spec and spec[0] is not None:
        raise ValueError(f"a stack's layer axis is sharded ({spec}); map logical axis 'layers' to no mesh axis")
    return jax.sharding.PartitionSpec(*spec[1:])


def to_published(table: Table, params: Any, dtype: Any = None) -> Callable[[str], np.ndarray]:
    """Returns a function from a published key to its value on the host, fetched when asked for, by all processes.

    Args:
      dtype: of values, which they get on the host, so that no device holds a tree of them; None leaves each its own.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    place = {key: (entry, i) for entry in table for i, key in enumerate(entry.keys)}

    def read(key: str) -> np.ndarray:
        entry, i = place[key]
        leaf = flat[entry.path]
        # An array keeps the host copy that is made of it; this one is dropped with its copy.
        value = global_arrays.to_host(jnp.copy(leaf) if entry.layers is None else leaf[i])
        return np.asarray(entry.layout.to_published(value), dtype=dtype, order="C")

    return read
