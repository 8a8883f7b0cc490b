"""One of two processes that save and restore together; prints one JSON line of what it saw.

python -m tests.training.checkpoint_process FOLDER PORT NUMBER
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from uae_jax.training import arrays
from uae_jax.training.checkpoints import CheckpointError, CheckpointStore


def state(step, mesh):
    """Rows split over all devices of both processes, and a key that all have."""
    rows = np.arange(32, dtype=np.float32).reshape(8, 4) + step
    split = NamedSharding(mesh, PartitionSpec("d"))
    whole = NamedSharding(mesh, PartitionSpec())
    return {
        "rows": jax.make_array_from_callback(rows.shape, split, lambda index: rows[index]),
        "key": jax.jit(lambda: jax.random.key(step), out_shardings=whole)(),
    }


def main(folder, port, number):
    jax.distributed.initialize(f"localhost:{port}", 2, number, initialization_timeout=300)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("d",))
    store = CheckpointStore(folder)
    store.save(1, state(1, mesh), {"step": 1})
    seen = {"first": [str(failure) for failure in store.wait()]}
    write = arrays.write
    if number == 1:
        arrays.write = fail
    store.save(2, state(2, mesh), {"step": 2})
    seen["second"] = [failure.step for failure in store.wait()]
    arrays.write = write
    seen["latest"] = store.latest()
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0, mesh)
    )
    restored = store.restore(wanted)
    seen["restored"] = restored.step
    seen["equal"] = all(
        np.array_equal(got.data, want.data)
        for got, want in zip(
            restored.state["rows"].addressable_shards, state(1, mesh)["rows"].addressable_shards, strict=True
        )
    )
    store.save(3, state(3, mesh), {"step": 3})
    store.close()
    try:
        store.restore({"rows": wanted["rows"]}, step=9)
    except CheckpointError as error:
        seen["refused"] = str(error)
    print(json.dumps(seen), flush=True)


def fail(folder, leaves, copied):
    raise OSError("this process has no disk")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
