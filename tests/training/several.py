"""Several local processes as one run, none of which outlives the block."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from tests import quickly


@contextlib.contextmanager
def started(arguments, count, folder, *, devices=1, missing=(), **environment):
    """Starts `python -m ARGUMENTS` so many times; yields the processes, None for those that are missing.

    What each says goes to FOLDER/said.N.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    common = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_COMPILATION_CACHE"}
    common |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quickly.devices(devices), **environment}
    if count > 1:
        common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    running = []
    try:
        for index in range(count):
            if index in missing:
                running.append(None)
                continue
            with (folder / f"said.{index}").open("w") as said:
                environ = common | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {})
                command = [sys.executable, "-m", *map(str, arguments)]
                running.append(subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environ))
        yield running
    finally:
        for process in running:
            if process is not None:
                process.kill()
                process.wait()


def ended(running, seconds):
    """Waits for all of them; their exit codes."""
    end = time.monotonic() + seconds
    return [process and process.wait(max(end - time.monotonic(), 0.1)) for process in running]


def run(arguments, count, folder, *, seconds=600, **settings):
    """Starts and waits; all must succeed."""
    with started(arguments, count, folder, **settings) as running:
        codes = ended(running, seconds)
    assert codes == [0] * count, "\n".join(said(folder, i) for i in range(count))


def said(folder, index):
    return (folder / f"said.{index}").read_text()


def wait_for_step(folder, index, step, running, seconds=300):
    """Until a process of the toy's says that it is at a step."""
    at, end = folder / f"at.{index}", time.monotonic() + seconds
    while not (at.exists() and (at.read_text() or "0") >= str(step)):
        assert all(process.poll() is None for process in running), said(folder, index)
        assert time.monotonic() < end, f"process {index} did not come to step {step}"
        time.sleep(0.05)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
