"""A tree of arrays in an Orbax folder: flat, by the path of each leaf, with typed PRNG keys as the words they hold.

Only leaves are stored, so a tree may be built of any nodes that JAX knows (dataclasses, named tuples, None), and what
it is made of is the reader's to say.
"""

import asyncio
import collections
import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

Tree = Any
Leaves = dict[str, Any]  # path -> array, or its shape and dtype


def flatten(tree: Tree) -> Leaves:
    """Lists a tree's leaves by their paths, such as "params/layers/0/kernel".

    Raises:
      ValueError: if two leaves have the same path, if there is none, or if one holds nothing.
      TypeError: if a leaf is no `jax.Array` or `jax.ShapeDtypeStruct`; names all of these.
    """
    pairs = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    strange = [
        f"{path} is {type(leaf).__name__}"
        for path, leaf in pairs
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    ]
    if strange:
        raise TypeError(f"a state holds jax.Array leaves only; {', '.join(strange)}; put host values into the record")
    # Orbax joins names with dots; what is the same to it must not become one.
    counts = collections.Counter(_stored_name(path) for path, _ in pairs)
    if twice := [path for path, _ in pairs if counts[_stored_name(path)] > 1]:
        raise ValueError(f"leaves of the same path: {', '.join(twice)}; rename one")
    if empty := [f"{path} {list(leaf.shape)}" for path, leaf in pairs if 0 in leaf.shape]:
        raise ValueError(f"leaves without elements, which Orbax does not store: {', '.join(empty)}; leave them out")
    if not pairs:
        raise ValueError("the state has no leaves; nothing to store")
    return dict(pairs)


def describe(leaves: Leaves) -> dict[str, dict[str, Any]]:
    """Path -> {"shape", "dtype"} for JSON; a typed key's dtype names its generator, "key<fry>"."""
    return {path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} for path, leaf in leaves.items()}


def mismatches(got: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> list[str]:
    """Compares what is stored with what is to be restored, both from `describe`; one line per leaf that differs."""
    lines = [f"missing: {path} {_shown(leaf)}" for path, leaf in wanted.items() if path not in got]
    lines += [f"unexpected: {path} {_shown(leaf)}" for path, leaf in got.items() if path not in wanted]
    for path, leaf in wanted.items():
        if path in got and got[path] != leaf:
            what = "shape" if got[path]["shape"] != leaf["shape"] else "dtype"
            lines.append(f"{what}: {path}: got {_shown(got[path])}, wanted {_shown(leaf)}")
    return lines


def snapshot(leaves: Leaves) -> Leaves:
    """Makes arrays ready for `write`: typed keys become uint32 words, and what is in host memory already is copied.

    Orbax copies from accelerators by itself, but on a CPU it would go on to read buffers that the next step may
    overwrite, as it was given them.
    """
    return {path: _own(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for path, leaf in leaves.items()}


def write(folder: epath.Path, leaves: Leaves, copied: Callable[[], None]) -> None:
    """Writes this process's shards below a folder, and waits until they are written.

    Args:
      folder: need not exist; the same on all processes.
      leaves: from `snapshot`.
      copied: called as soon as the devices' buffers are no longer needed.

    Raises:
      Exception: Orbax and TensorStore raise many kinds.
    """
    named = {_stored_name(path): leaf for path, leaf in leaves.items()}
    _hush_stragglers()
    with _without_tracebacks():
        futures = asyncio.run(_handler().async_save(folder, args=ocp.args.PyTreeSave(named)))
        copied()
        for future in futures or ():
            future.result()


def finish(folder: epath.Path) -> None:
    """Joins what the processes wrote; one process calls it, after all of them have written."""
    _handler().finalize(folder)


def read(folder: epath.Path, abstract: Tree) -> Tree:
    """Reads arrays bit by bit into any sharding; each process reads what its devices need.

    Args:
      folder: that `write` and `finish` made.
      abstract: tree of `jax.ShapeDtypeStruct` (or arrays), just as stored; see `mismatches`. Without a sharding, a leaf
        goes to the default device.

    Raises:
      Exception: Orbax and TensorStore raise many kinds.
    """
    wanted = flatten(abstract)
    targets = {_stored_name(path): _target(leaf) for path, leaf in wanted.items()}
    arguments = ocp.args.PyTreeRestore(targets, restore_args=ocp.checkpoint_utils.construct_restore_args(targets))
    stored = _handler().restore(folder, args=arguments)
    leaves = [_as_wanted(stored[_stored_name(path)], leaf) for path, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), leaves)


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Keeps Orbax's threads from logging pages of what is raised, and reported, here anyway."""

    def keep(record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in record.getMessage()

    logger = logging.getLogger("absl")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


@functools.cache
def _hush_stragglers() -> None:
    """Keeps tracebacks of what fails after a write has failed off the screen, where they bury the one line about it.

    Orbax gives up at the first array that cannot be written, and closes its event loop; TensorStore goes on with the
    others, and calls back into that loop whenever it is done, so this is for good.
    """

    def keep(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not ("never retrieved" in message and "orbax" in message)

    def hook(event: Any) -> None:
        if event.object is not None or str(event.exc_value) != "Event loop is closed":
            usual(event)

    logging.getLogger("asyncio").addFilter(keep)
    usual, sys.unraisablehook = sys.unraisablehook, hook


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Trained weights and moments hardly shrink; compressing them costs more time than writing them.
    return ocp.PyTreeCheckpointHandler(use_compression=False)


def _stored_name(path: str) -> str:
    return path.replace("/", ".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _own(array: jax.Array) -> jax.Array:
    on_host = "host" in (array.sharding.memory_kind or "")
    if on_host or next(iter(array.sharding.device_set)).platform == "cpu":
        return jax.device_put(array, array.sharding, may_alias=False)
    return array


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or SingleDeviceSharding(jax.devices()[0])
    if _is_key(leaf):  # the words of a key are one more axis, which a PartitionSpec need not mention
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _as_wanted(array: jax.Array, wanted: Any) -> jax.Array:
    if _is_key(wanted):
        array = jax.random.wrap_key_data(array, impl=_generator(wanted))
    if array.shape != wanted.shape or array.dtype != wanted.dtype:
        raise TypeError(f"Orbax gave {array.dtype}{list(array.shape)}, wanted {wanted.dtype}{list(wanted.shape)}")
    return array


def _generator(key: Any) -> Any:
    """The generator of a typed key of which there may be no more than shape and dtype."""
    found = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), jax.ShapeDtypeStruct(key.shape, key.dtype))
    return found[0]


def _shown(leaf: dict[str, Any]) -> str:
    return f"{leaf['dtype']}{leaf['shape']}"
