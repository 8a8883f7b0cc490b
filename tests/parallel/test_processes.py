"""How a process finds out where it is; what several processes do together is in tests/training/test_processes.py."""

import contextlib
import socket
import threading

import jax
import pytest

from uae_jax import cli
from uae_jax.errors import ABANDONED, FAILED, STOPPED, RunError
from uae_jax.parallel import processes, roll_call
from uae_jax.parallel.processes import Place
from uae_jax.training.loop import Stopped

BY_HAND = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables for a test, as JAX looks at them itself."""

    def given(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return given


def test_alone_where_nothing_says_otherwise(environment):
    assert processes.place() is None
    environment(**BY_HAND | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"})
    assert processes.place() is None


def test_variables_say_where_it_is(environment):
    environment(**BY_HAND)
    assert processes.place() == Place(3, 4, "10.0.0.1:1234")
    environment(**SLURM)  # which JAX would ask
    assert processes.place() == Place(3, 4, "10.0.0.1:1234")
    environment(UAE_DISTRIBUTED="0")
    assert processes.place() is None


def test_slurm_says_where_it_is(environment):
    environment(**SLURM)
    # JAX's port: 65535 - 4096 + 1 + 4097 mod 4096 = 61441; eight tasks on two nodes have a device each.
    assert processes.place() == Place(5, 8, "node07:61441", (1,))
    environment(JAX_COORDINATOR_ADDRESS="head:99")
    assert processes.place() == Place(5, 8, "head:99", (1,))


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"},  # a task for a node is for all its devices
        {"JAX_LOCAL_DEVICE_IDS": "0,1"},  # said by hand, which JAX reads itself
        {"CUDA_VISIBLE_DEVICES": "6"},  # Slurm shows each task its own device only, which has number 0 then
    ],
)
def test_slurm_tasks_have_all_devices_that_they_see(environment, changes):
    environment(**SLURM | changes)
    assert processes.place().local_devices is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_PROCESS_ID": ""}, "there is JAX_COORDINATOR_ADDRESS=10.0.0.1:1234, JAX_NUM_PROCESSES=4; set JAX_COOR"),
        ({"JAX_PROCESS_ID": "4"}, "process 4 of 4, wanted a number from 0 to 3"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES is 'four', wanted a whole number"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "wanted HOST:PORT"),
        ({**dict.fromkeys(BY_HAND, ""), "UAE_DISTRIBUTED": "1"}, "there is nothing"),
    ],
)
def test_what_is_not_enough_is_refused(environment, changes, message):
    environment(**BY_HAND | changes)
    with pytest.raises(RunError, match=message):
        processes.place()


def test_alone_values_stay_what_they_are():
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.from_main([1, 2]) == [1, 2]


ENDS = [
    (Stopped("stopped at step 2, saved"), STOPPED),
    (RunError("the loss is no number"), FAILED),
    (ValueError("no such setting"), FAILED),
    (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GiB"), FAILED),
    (jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 99 bytes"), FAILED),
    (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer"), ABANDONED),
]


# Of a judge on the host that raises: the command shows it whole.
CALLED = (jax.errors.JaxRuntimeError("INTERNAL: CpuCallback error calling callback: Traceback ..."), FAILED)


@pytest.mark.parametrize(("error", "code"), [*ENDS, CALLED])
def test_who_goes_alone_ends_with_the_code_of_its_reason(error, code):
    assert processes._exit_code(error) == code


@pytest.mark.parametrize(("error", "code"), ENDS[:-1])
def test_the_command_ends_with_the_code_of_its_reason(monkeypatch, error, code):
    def run(args):
        raise error

    monkeypatch.setattr(cli, "_train", lambda name: run)
    assert cli.main(["train", "--config", "x", "--workdir", "y"]) == code


def test_what_clusters_start_again_is_what_is_no_failure():
    """xpk's rule: exit codes 127 to 255 start again, as those of signals, which shells put at 128 and more."""
    assert STOPPED == 128 + 15 and FAILED < 127 < ABANDONED < 255  # 255 is ssh's own


def call(*places, timeout=3.0, other=b""):
    """The roll call of some processes (index, count) at once: what each of them was told, "" where all is well."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = [""] * len(places)

    def one(number, index, count):
        try:
            roll_call.answer(f"localhost:{port}", index, count, timeout)
        except RunError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=one, args=(number, *place)) for number, place in enumerate(places)]
    for thread in threads:
        thread.start()
    while other and any(thread.is_alive() for thread in threads):
        with contextlib.suppress(ConnectionError), socket.create_connection(("localhost", port), timeout=5) as stranger:
            stranger.sendall(other)
            other = b""
    for thread in threads:
        thread.join(30)
    with socket.create_server(("", port)):  # free again, for JAX
        return told


def test_all_answer():
    assert call((2, 3), (0, 3), (1, 3)) == ["", "", ""]


def test_who_is_missing_is_told_to_all():
    told = call((0, 4), (2, 4), timeout=1.0)
    host = socket.gethostname()
    assert told[0] == told[1]
    assert f"process 1, 3 of 4 did not come within 1 s; there are 0 on {host}, 2 on {host};" in told[0]


def test_process_0_may_be_missing():
    assert "process 0 of 2 did not come within 1 s: nobody calls the roll" in call((1, 2), timeout=1.0)[0]


def test_numbers_that_clash_are_told_to_all():
    host = socket.gethostname()
    assert set(call((0, 3), (1, 3), (1, 3))) == {
        f"two processes say that they are number 1, on {host} and {host}; wanted 0 to 2, one each"
    }
    assert all("says it is one of 2, process 0 one of 3" in line for line in call((0, 3), (1, 2)))


def test_strangers_are_passed_over():
    places = [(0, 2)]
    assert "process 1 of 2 did not come" in call(*places, timeout=1.0, other=b"GET / HTTP/1.1\r\n\r\n")[0]
    assert "process 1 of 2 did not come" in call(*places, timeout=1.0, other=b"x" * 10_000)[0]


def test_a_place_names_host_and_devices():
    line = processes.described()
    assert line.startswith(f"process 0 of 1 on {socket.gethostname()}: ")
    assert f"{jax.local_device_count()} of {jax.device_count()} devices, cpu" in line


@pytest.mark.parametrize("said, kept", [("", False), ("true", True)])
def test_several_cpu_devices_compile_anew_unless_told_otherwise(monkeypatch, said, kept):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", said)
    before = jax.config.jax_enable_compilation_cache
    assert before and jax.device_count() > 1
    try:
        processes.compile_anew()
        assert jax.config.jax_enable_compilation_cache is kept
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
