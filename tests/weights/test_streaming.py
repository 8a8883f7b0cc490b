"""A model passes through host memory one tensor at a time: measured on a checkpoint of more than 1 GB.

On the CPU backend a device's memory is the host's, so the arrays themselves are subtracted from the peak of the
process. Each measurement is a process of its own, since a peak can only be taken once from a clean start. Run by hand:

    python -m tests.weights.test_streaming CHECKPOINT {one|mesh} {float32|bfloat16} [SAVE_TO]
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.weights import toy
from uae_jax.weights import registry, transfer
from uae_jax.weights.checkpoint import MODEL, open_checkpoint, write_checkpoint, write_json

MIB = 2**20
CONFIG = toy.ToyConfig(depth=15, width=1024, hidden=8192, vocab=8192, out=1024)
LARGEST = 32 * MIB  # one layer of up or down, and the embedding: 1024 x 8192 float32
# Loading holds a tensor as it was read, its transposed copy, and the copy of the tensor before it, which JAX lets go of
# when it is next called; saving holds the device's slice and its host copy, or that and the transposed one: at most
# three. The rest is what does not grow with the model: programs compiled for the real shapes, small freed blocks.
# Measured: 73 to 109 MiB. A fourth tensor kept by mistake goes over this, a copy of the model ten times over.
LIMIT = 3 * LARGEST + 32 * MIB
# The C library keeps freed memory below 32 MB for reuse, in an arena per thread: up to 150 MiB, whatever the model's
# size. That is not held by us, so let it give blocks of 1 MB and more back at once.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(MIB), "MALLOC_TRIM_THRESHOLD_": str(MIB)}


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that tell keys and rows apart, made without a random generator: it would take most of the time."""
    seed = sum(key.encode()) % 97
    rows = np.arange(shape[0] if shape else 1, dtype=np.float32) + seed
    return np.ascontiguousarray(np.broadcast_to(rows.reshape(-1, *[1] * (len(shape) - 1)), shape or (1,))).reshape(
        shape
    )


def memory(field: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def watch(work) -> tuple[object, int]:
    """Runs `work` and returns its result and by how many bytes the process grew at its largest."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = memory("VmRSS")
    result = work()
    return result, memory("VmHWM") - before


def measure(folder: str, devices: str, dtype: str, save_to: str | None = None) -> dict:
    """What one process measures."""
    import jax

    from uae_jax.parallel.mesh import make_mesh
    from uae_jax.weights.pretrained import load_pretrained, save_pretrained

    registry.ARCHITECTURES[toy.NAME] = toy.ARCHITECTURE
    mesh = make_mesh(1, 4, 2) if devices == "mesh" else None
    load_pretrained(Path(folder).parent / "warm-up", dtype=dtype, mesh=mesh)  # starts the backend
    model, grown = watch(lambda: load_pretrained(folder, dtype=dtype, mesh=mesh))
    leaves = jax.tree.leaves(model.params)
    own = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    kernel = model.params["layers"]["up"]["kernel"]
    for i in (0, CONFIG.depth - 1):
        key = f"blocks.{i}.mlp.up.weight"
        wanted = value(key, (CONFIG.hidden, CONFIG.width)).T.astype(kernel.dtype)
        assert np.asarray(kernel[i]).tobytes() == np.ascontiguousarray(wanted).tobytes()
    found = {"own": own, "load_excess": grown - own, "devices": len(kernel.sharding.device_set)}
    if save_to is not None:
        _, found["save_excess"] = watch(lambda: save_pretrained(model, save_to, max_shard_bytes=200 * MIB))
    return found


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A sharded checkpoint of 1.2 GB, written as a stream; removed at the end."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs Linux's /proc to measure a peak")
    root = tmp_path_factory.mktemp("streaming")
    for name, config in (("warm-up", toy.ToyConfig()), ("model", CONFIG)):
        shapes = transfer.published_shapes(toy.table(config), toy.ARCHITECTURE.abstract(config))
        (root / name).mkdir()
        write_json(root / name / "config.json", toy.config_to_json(config))
        write_checkpoint(
            root / name, MODEL, shapes, lambda key, shapes=shapes: value(key, shapes[key][0]), max_shard_bytes=200 * MIB
        )
    yield root / "model"
    for file in root.rglob("*.safetensors"):
        file.unlink()


def child(*args: object) -> dict:
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    environment |= ALLOCATOR
    command = [sys.executable, "-m", "tests.weights.test_streaming", *map(str, args)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print({key: f"{value / MIB:.0f} MiB" if key != "devices" else value for key, value in found.items()})
    return found


@pytest.mark.slow
def test_loading_and_saving_hold_one_tensor_and_not_one_model(published, tmp_path):
    tensors = open_checkpoint(published)
    size = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    assert size > 1e9 and len(list(published.glob("*.safetensors"))) > 5
    assert max(math.prod(tensor.shape) * 4 for tensor in tensors.values()) == LARGEST

    found = child(published, "one", "float32")
    assert found["own"] == size and found["devices"] == 1
    assert found["load_excess"] < LIMIT

    # Read as float32 and kept as bfloat16: no float32 copy of anything but the tensor in flight.
    found = child(published, "one", "bfloat16")
    assert found["own"] == size // 2
    assert found["load_excess"] < LIMIT

    found = child(published, "mesh", "float32", tmp_path / "saved")
    assert found["devices"] == 8
    assert size <= found["own"] < 1.01 * size  # split 8 ways but for norms, biases and the scalar, which are copied
    assert found["load_excess"] < LIMIT
    assert found["save_excess"] < LIMIT
    saved = open_checkpoint(tmp_path / "saved")
    assert saved.keys() == tensors.keys()
    for key in ("embed.weight", "blocks.7.mlp.down.weight", "blocks.14.attn.qkv.bias", "scale"):
        assert saved[key].read().tobytes() == value(key, saved[key].shape).tobytes()
    for file in (tmp_path / "saved").iterdir():
        file.unlink()


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
