"""Several processes as one run: how they find each other, say where they are, and learn that one of them is gone.

`jax.distributed` connects them and watches them: whoever sends no heartbeat for `HEARTBEAT_SECONDS` is dead, and JAX
ends all others with a message that has its number. Three things it does not do are done here. Before it connects,
process 0 calls the roll on its port, as JAX would end with no word of who is missing. Who ends with an error leaves
word of it, and goes without waiting for others that may never come. And small values are told from process to process.
"""

import atexit
import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from uae_jax.errors import ABANDONED, FAILED, RunError
from uae_jax.parallel import roll_call

SWITCH = "UAE_DISTRIBUTED"
TIMEOUT = "UAE_START_TIMEOUT"
START_SECONDS = 90.0  # until all have answered the roll call; then JAX connects them, which takes a moment
HEARTBEAT_SECONDS = 60
_CONNECT_SECONDS = 60  # for what follows the roll call
_SHUTDOWN_SECONDS = 60
_WORD_SECONDS = 10.0  # between the first process that ends with an error and the last
_ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_WORDS = "uae/ended/"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where this process is among all.

    Attributes:
      index: from 0.
      count: of all processes.
      address: host and port of process 0, where the others find it.
      local_devices: numbers of the host's devices that are this process's; None for all of them.
    """

    index: int
    count: int
    address: str
    local_devices: tuple[int, ...] | None = None


def place(environment: Mapping[str, str] | None = None, timeout: float = START_SECONDS) -> Place | None:
    """Finds out whether this process is one of several, and which.

    Args:
      environment: `os.environ` when None. `UAE_DISTRIBUTED=0` says that it is alone. `JAX_COORDINATOR_ADDRESS`,
        `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say where it is, as far as they are there; for the rest JAX asks Cloud
        TPU's metadata, Slurm, Open MPI or Kubernetes, whichever there is.
      timeout: seconds that JAX may wait for process 0's host to have an address.

    Returns:
      None where it is alone.

    Raises:
      RunError: if it cannot be found out: of the variables some are there and some are not, or make no sense.
    """
    environment = os.environ if environment is None else environment
    if environment.get(SWITCH, "") == "0":
        return None
    given = {name: environment[name] for name in _ENVIRONMENT if environment.get(name)}
    address = given.get(_ENVIRONMENT[0])
    count, index = (_number(name, given[name]) if name in given else None for name in _ENVIRONMENT[1:])
    devices: tuple[int, ...] | None = None
    if len(given) < len(_ENVIRONMENT):
        address, count, index, found = _detected(address, count, index, timeout)
        devices = _devices(environment, found)
    if address is None and count is None and index is None and environment.get(SWITCH, "") != "1":
        return None
    if address is None or count is None or index is None:
        known = ", ".join(f"{name}={value}" for name, value in given.items()) or "nothing"
        raise RunError(
            f"this is to be one of several processes, but which is not known: there is {known}; set "
            f"{', '.join(_ENVIRONMENT)} all together, or {SWITCH}=0 to run alone"
        )
    if not 0 <= index < count:
        raise RunError(f"this is process {index} of {count}, wanted a number from 0 to {count - 1}")
    if ":" not in address:
        raise RunError(f"the coordinator's address is {address!r}, wanted HOST:PORT")
    return None if count == 1 else Place(index, count, address, devices)


def _number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RunError(f"{name} is {value!r}, wanted a whole number") from None


def _detected(address: str | None, count: int | None, index: int | None, timeout: float) -> tuple:
    """What JAX makes of the environment: address, count, index and local devices, each None where it does not know."""
    try:
        from jax._src.clusters import ClusterEnv  # only `initialize` is public, and it tells nobody what it found
    except ImportError:
        log.warning("this version of JAX does not say which cluster it is on; set %s", ", ".join(_ENVIRONMENT))
        return address, count, index, None
    try:
        return ClusterEnv.auto_detect_unset_distributed_params(address, count, index, None, None, int(timeout))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise RunError(
            f"this looks like one of several processes, but which cannot be found out: {error}; set "
            f"{', '.join(_ENVIRONMENT)}, or {SWITCH}=0 to run alone"
        ) from error


def _devices(environment: Mapping[str, str], found: Any) -> tuple[int, ...] | None:
    """The devices of this process on a GPU cluster.

    JAX gives each task of a node the device of its own number, which is wrong in two cases: a single task on the node
    is to have them all, and a task that Slurm shows one device only has no device of another number than 0. What
    `JAX_LOCAL_DEVICE_IDS` says, JAX reads itself.
    """
    if found is None or environment.get("JAX_LOCAL_DEVICE_IDS"):
        return None
    tasks, nodes = environment.get("SLURM_NTASKS"), environment.get("SLURM_STEP_NUM_NODES")
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    if (tasks is not None and tasks == nodes) or (visible and "," not in visible):
        return None
    return tuple(found)


def start() -> None:
    """Connects this process to the others, if there are any, and says on stderr where it is. Before any use of devices.

    Raises:
      RunError: if not all have come within `UAE_START_TIMEOUT` seconds (90 by default); names those missing.
    """
    timeout = float(os.environ.get(TIMEOUT) or START_SECONDS)
    here = place(timeout=timeout)
    if here is not None:
        try:
            roll_call.answer(here.address, here.index, here.count, timeout)
        except RunError as error:
            error.exit_code = ABANDONED  # by others, who may come when all are started again
            raise
        jax.distributed.initialize(
            here.address,
            here.count,
            here.index,
            local_device_ids=here.local_devices,
            cluster_detection_method="deactivate",  # all is known by now
            initialization_timeout=_CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    print(described(), file=sys.stderr, flush=True)
    compile_anew()


def compile_anew() -> None:
    """Leaves the persistent compilation cache out where its programs go wrong: on several CPU devices.

    XLA runs the collectives of a CPU program one after the other, in the order of the program. Of a program that it
    has read back (jaxlib 0.10.2) it does not: those that do not depend on one another run in any order, at the same
    time. Between processes gloo takes one for the other and ends them all ("Received data size doesn't match"), and
    within one they wait for each other's threads until XLA ends it. GPUs and TPUs order them when they compile.

    `JAX_ENABLE_COMPILATION_CACHE` of the environment, if it says anything, is left as it is.
    """
    if jax.default_backend() != "cpu" or jax.device_count() == 1 or os.environ.get("JAX_ENABLE_COMPILATION_CACHE"):
        return
    if jax.config.jax_compilation_cache_dir and is_main():
        log.warning("on several CPU devices programs are compiled anew: XLA misorders collectives of stored ones")
    jax.config.update("jax_enable_compilation_cache", False)


def described() -> str:
    """One line: which process of how many, on which host, with which devices."""
    local = jax.local_devices()
    return (
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: {len(local)} of "
        f"{jax.device_count()} devices, {local[0].device_kind}"
    )


def is_main() -> bool:
    """Whether this is the process that writes what there is one of: metrics, pictures, the result."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """`start`, and what to do when this process ends with an error while others may be waiting for it.

    If all end within a few seconds, they part as usual. If not, this one names those that were first or are silent, and
    ends without waiting for anyone: the others learn of it from what they were waiting for, or by its heartbeat.
    """
    start()
    try:
        yield
    except BaseException as error:
        if jax.process_count() > 1:
            _part(error)
        raise


def _part(error: BaseException) -> None:
    client = _client()
    host = socket.gethostname()
    code = _exit_code(error)
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    word = {"host": host, "time": time.time(), "error": said, "code": code}
    me, count = jax.process_index(), jax.process_count()
    try:
        client.key_value_set(f"{_WORDS}{me}", json.dumps(word))
        client.wait_at_barrier("uae/ended", int(_WORD_SECONDS * 1000))
        whole = True
    except jax.errors.JaxRuntimeError:  # not all came, or process 0 is gone
        whole = False
    words = _words(client)
    first = min(words, key=lambda i: words[i]["time"], default=me)
    if first != me and words[first]["error"] != word["error"]:
        told = words[first]
        message = f"process {me} of {count}: process {first} on {told['host']} failed first: {told['error']}"
        print(message, file=sys.stderr)
    if whole:
        return
    silent = sorted(set(range(count)) - set(words) - {me})
    if silent:
        named = ", ".join(map(str, silent))
        print(
            f"process {me} of {count} on {host}: no word from process {named}: dead, or waiting for this one; its own "
            "log says more",
            file=sys.stderr,
        )
    if me == 0:
        time.sleep(2.0)  # the others ask this one for the words
    if code == ABANDONED and any(words[each]["code"] == FAILED for each in words):
        code = FAILED  # as another did, whose error ended this one
    atexit.register(_leave, code)  # registered last, so it comes before JAX's own, which waits for all


def _exit_code(error: BaseException) -> int:
    """Of a process that cannot wait for the others: whether they are gone shows in what was to be done with them."""
    if isinstance(error, RunError):
        return error.exit_code
    own = ("RESOURCE_EXHAUSTED", "Out of memory", "CpuCallback")  # the last: what is called on the host has raised
    by_others = isinstance(error, jax.errors.JaxRuntimeError) and not any(sign in str(error) for sign in own)
    return ABANDONED if by_others else FAILED


def _words(client: Any) -> dict[int, dict[str, Any]]:
    """What processes said when they ended, by their numbers."""
    try:
        found = client.key_value_dir_get(_WORDS)
    except jax.errors.JaxRuntimeError:
        return {}
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    """The coordinator as JAX is connected to it. JAX has no public name for it; Orbax takes it from there, too."""
    from jax._src import distributed

    return distributed.global_state.client


def gather(value: Any) -> list[Any]:
    """One value of every process, in the order of processes, on all of them.

    All call it at the same point of their main thread.

    Args:
      value: whatever JSON keeps as it is.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    room = 1 << int(sizes.max() - 1).bit_length()  # a few lengths only, as each is a program
    texts = multihost_utils.process_allgather(np.pad(text, (0, room - len(text))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(texts, sizes, strict=True)]


def from_main(value: Any) -> Any:
    """Process 0's value (JSON) on all; called as `gather` is."""
    return value if jax.process_count() == 1 else gather(value if is_main() else None)[0]
