"""States to save: every value is a function of the step alone, so that a restored one can be told right from wrong."""

import errno
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from uae_jax.training.checkpoints import CheckpointStore


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    moments: tuple
    ema: dict | None
    key: jax.Array
    keys: jax.Array


def mesh(*sizes: int) -> Mesh:
    """A mesh of the first devices, with axes "a", "b", ..."""
    count = int(np.prod(sizes))
    return Mesh(np.asarray(jax.devices()[:count]).reshape(sizes), tuple("abcd"[: len(sizes)]))


@functools.cache
def values(step: int, rows: int = 8) -> State:
    """A state on the default device: typed keys of two generators, float32, bfloat16, int32 and bool leaves."""
    rng = np.random.default_rng(step)
    params = {
        "layers": [{"kernel": jnp.asarray(rng.normal(size=(rows, 16)), jnp.float32)} for _ in range(2)],
        "half": jnp.asarray(rng.normal(size=(rows, 4)), jnp.bfloat16),
        "mask": jnp.asarray(rng.integers(0, 2, (rows,)), bool),
    }
    return State(
        step=jnp.int32(step),
        params=params,
        moments=(
            optax.ScaleByAdamState(jnp.int32(step), jax.tree.map(jnp.zeros_like, params), params),
            optax.EmptyState(),
        ),
        ema=None,
        key=jax.random.key(step),
        keys=jax.random.split(jax.random.key(step, impl="rbg"), 8),
    )


def placed(state: State, mesh: Mesh, spec: PartitionSpec) -> State:
    """The state with arrays of eight rows and more split by `spec`, and the rest on every device alike."""

    def place(leaf):
        wide = leaf.ndim and leaf.shape[0] >= 8
        return jax.device_put(leaf, NamedSharding(mesh, spec if wide else PartitionSpec()))

    return jax.tree.map(place, state)


def abstract(state: State) -> State:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)


def bits(state: State) -> list[tuple[str, str, bytes]]:
    """Path, dtype and bytes of every leaf."""

    def words(leaf):
        return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)

    return [
        (jax.tree_util.keystr(path), str(leaf.dtype), words(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def saved(folder, *steps, **options):
    """A folder with checkpoints of `values(step)`."""
    store = CheckpointStore(folder, **options)
    for step in steps:
        store.save(step, values(step), {"step": step})
    store.close()
    return store


def full_disk(*_, **__):
    """In place of a function that writes."""
    raise OSError(errno.ENOSPC, "No space left on device")
