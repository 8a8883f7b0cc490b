"""Runs killed at random moments: what was committed is whole, and nothing else is taken."""

import contextlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.training.checkpoint_loop import ROWS
from tests.training.checkpoint_states import abstract, bits, names, values
from uae_jax.training.checkpoints import CheckpointStore


@contextlib.contextmanager
def started(folder):
    """The saving loop in a process of its own, which does not outlive the block."""
    command = [sys.executable, "-m", "tests.training.checkpoint_loop", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process, word):
    """Reads what a loop says up to a line that begins with `word`; returns its number."""
    for line in process.stdout:
        if line.startswith(word):
            return int(line.split()[1])
    raise AssertionError(f"the loop ended with {process.wait()}, wanted it to go on until killed")


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_whole_checkpoints(tmp_path):
    rng = random.Random(0)
    kills_inside, saved = 0, 0
    for _ in range(6):
        with started(tmp_path) as process:
            restored = read_until(process, "restored")
            # A save that was reported done is there; one that was under way may be, or not.
            assert saved <= restored <= saved + 1
            for _ in range(rng.randrange(1, 3)):
                saved = max(restored, read_until(process, "saved"))
            read_until(process, "saving")
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            # What it had still said before the kill counts too.
            rest = process.stdout.read().split("\n")
            saved = max([saved, *(int(line.split()[1]) for line in rest if line.startswith("saved "))])
            assert process.wait() == -signal.SIGKILL
        kills_inside += any(name.startswith(".tmp-") and not name.endswith("-old") for name in names(tmp_path))
    assert kills_inside >= 2, "too few kills fell inside a save to say anything"
    restored = CheckpointStore(tmp_path).restore(abstract(values(0, ROWS)))
    assert saved <= restored.step <= saved + 1
    assert bits(restored.state) == bits(values(restored.step, ROWS))
    assert all(name.isdigit() for name in names(tmp_path)), "no kill makes a checkpoint look damaged"
