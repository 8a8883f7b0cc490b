"""Two processes write one checkpoint; what fails on one of them is no checkpoint for either."""

import json
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.checkpoint_states import names
from uae_jax.training.checkpoints import CheckpointStore


@pytest.mark.slow
def test_two_processes_save_and_restore_together(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.training.checkpoint_process", str(tmp_path), str(port)]
    processes = [subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, text=True) for i in range(2)]
    try:
        seen = [json.loads(process.communicate(timeout=900)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for one in seen:
        assert one["first"] == []
        assert one["second"] == [2]  # only process 1 failed, but both know
        assert one["latest"] == 1
        assert one["restored"] == 1
        assert one["equal"]
    assert "no checkpoint of step 9; there are [1, 3]" in seen[0]["refused"]
    assert "process 0 found nothing" in seen[1]["refused"]
    assert names(tmp_path) == ["00000001", "00000003"]
    # Four devices of two processes then, one device of one process now.
    wanted = {
        "rows": jax.ShapeDtypeStruct((8, 4), jnp.float32),
        "key": jax.ShapeDtypeStruct((), jax.random.key(0).dtype),
    }
    restored = CheckpointStore(tmp_path).restore(wanted)
    np.testing.assert_array_equal(restored.state["rows"], np.arange(32).reshape(8, 4) + 3)
    assert restored.state["key"] == jax.random.key(3)
