"""Killed at random moments, some inside a save, and started again, a run ends bit for bit as one that never was.

Stages run in processes of their own, started by the command that users type.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from tests import quickly
from tests.tiny.embedded import needed
from tests.training import NOT_REPEATED
from tests.training.kill_config import SETTINGS
from uae_jax.training import arrays
from uae_jax.training.metrics import read_history

pytestmark = pytest.mark.slow

KILLS = 5
CONFIG = Path(__file__).with_name("kill_config.py")
STEPS = 16


def start(stage, workdir, cache):
    """Starts `uae train` on one device."""
    environment = os.environ | {
        "XLA_FLAGS": quickly.devices(1),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "uae_jax.cli", "train", "--config", f"{CONFIG}:{stage}", "--workdir", str(workdir)]
    with open(workdir.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def steps_done(workdir):
    lines = read_history(workdir) if (workdir / "metrics.jsonl").exists() else []
    return max((line["step"] for line in lines), default=0)


def wait_for(process, condition, what):
    """Waits until something holds; False if the run ended before."""
    end = time.monotonic() + 240
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, f"waited 240 s for {what}"
        time.sleep(0.002)
    return True


def final_state(workdir):
    """Path -> array, of the last checkpoint; and its record without the times in its history."""
    folder = workdir / "checkpoints" / f"{STEPS:08d}"
    leaves = json.loads((folder / "leaves.json").read_text())
    keys = {path: jax.random.key(0).dtype for path, leaf in leaves.items() if leaf["dtype"].startswith("key")}
    wanted = {
        path: jax.ShapeDtypeStruct(tuple(leaf["shape"]), keys.get(path, leaf["dtype"])) for path, leaf in leaves.items()
    }
    stored = arrays.read(epath.Path(folder / "arrays"), wanted)
    values = {path: np.asarray(jax.random.key_data(x) if path in keys else x) for path, x in stored.items()}
    record = json.loads((folder / "record.json").read_text())
    record["history"] = [{k: v for k, v in line.items() if k not in NOT_REPEATED} for line in record["history"]]
    return values, record


def asked_for(stage, *more):
    """A stage as a parameter, run when it is asked for."""
    marks = [needed] if SETTINGS[stage]["model"] == "tiny" else []
    return pytest.param(stage, *more, marks=[*marks, pytest.mark.exhaustive])


# Always one with a state of its own beside the parameters; those with a rollout take five minutes each.
@pytest.mark.parametrize("stage, kills", [("self_distillation", 2), *(asked_for(stage, KILLS) for stage in SETTINGS)])
def test_killed_and_resumed_is_bit_identical(stage, kills, tmp_path):
    cache, whole, parts = tmp_path / "cache", tmp_path / "whole", tmp_path / "parts"
    assert start(stage, whole, cache).wait(timeout=400) == 0, whole.with_suffix(".log").read_text()[-3000:]
    draw = random.Random(stage)
    inside_a_save = 0
    for number in range(kills):
        process = start(stage, parts, cache)
        before = steps_done(parts)
        # Two or three steps on, so that all kills fit into the run; every other one as soon as a save begins.
        target = min(before + draw.randint(1, 3), STEPS - 1)
        if not wait_for(process, lambda target=target: steps_done(parts) >= target, f"step {target}"):
            pytest.fail(parts.with_suffix(".log").read_text()[-3000:])
        saving = lambda: any((parts / "checkpoints").glob(".tmp-*"))  # noqa: E731
        if number % 2 == 0:
            wait_for(process, saving, "a save")
        time.sleep(draw.random() * 0.05)
        inside_a_save += saving()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert inside_a_save >= kills // 2
    assert start(stage, parts, cache).wait(timeout=400) == 0, parts.with_suffix(".log").read_text()[-3000:]

    (one, record), (other, again) = final_state(whole), final_state(parts)
    assert one.keys() == other.keys()
    assert {path.split("/")[0] for path in one} >= {"params", "moments", "ema", "key", "step"}
    for path in one:
        assert one[path].dtype == other[path].dtype
        np.testing.assert_array_equal(one[path], other[path], err_msg=path)
    assert record == again  # data iterator, metrics of every step, each once
    if "paint" in SETTINGS[stage]:  # others compile again for another length of text
        assert [line["compiled_programs"] for line in read_history(whole)[3:]] == [0] * (STEPS - 3)
    steps = [line["step"] for line in read_history(parts)]
    assert steps == list(range(1, STEPS + 1))
