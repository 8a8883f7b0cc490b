"""Who is there, before JAX connects a run's processes: process 0 asks on the port that JAX will use.

Each process sends one JSON line and gets one back once all have come, or time is up. JAX's own start says nothing of
who was missing, and ends the program where it stands.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import time
from typing import Any

from uae_jax.errors import RunError

_MOST = 4096  # bytes of a line
_RETRY_SECONDS = 0.5
_GRACE_SECONDS = 10.0  # that process 0's answer may be late


@dataclasses.dataclass
class _Caller:
    """One connection; all but that is known once its line is there."""

    connection: socket.socket
    line: bytes = b""
    index: int | None = None
    count: int = 0
    host: str = ""


def answer(address: str, index: int, count: int, timeout: float) -> None:
    """Waits until all processes are there.

    Args:
      address: HOST:PORT of process 0; free there until this returns, and again then.
      index: of this process.
      count: of all.
      timeout: seconds.

    Raises:
      RunError: on every process, if some did not come, or two have one number; names them.
    """
    if index == 0:
        _call(address, count, timeout)
    else:
        _report(address, index, count, timeout)


def _call(address: str, count: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    callers: list[_Caller] = []
    problem = ""
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        server = stack.enter_context(_listening(address, end))
        selector.register(server, selectors.EVENT_READ)
        while not problem and len(_present(callers)) < count - 1 and (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data is None:
                    connection = stack.enter_context(server.accept()[0])
                    connection.setblocking(False)
                    callers.append(_Caller(connection))
                    selector.register(connection, selectors.EVENT_READ, callers[-1])
                elif not _read(key.data):
                    selector.unregister(key.data.connection)
                    if key.data.index is None:
                        callers.remove(key.data)
                elif key.data.index is not None:
                    problem = problem or _clash(key.data, callers, count)
        hosts = {0: socket.gethostname(), **_present(callers)}
        missing = sorted(set(range(count)) - set(hosts))
        if missing and not problem:
            there = ", ".join(f"{i} on {host}" for i, host in sorted(hosts.items()))
            problem = (
                f"process {', '.join(map(str, missing))} of {count} did not come within {timeout:g} s; there are "
                f"{there}; look at what the missing ones say, and start all of them with one address, {address}"
            )
        _tell(callers, problem)
    if problem:
        raise RunError(problem)


def _listening(address: str, end: float) -> socket.socket:
    """A server on the address's port, on all of the host's networks; waits while somebody else has it."""
    port = int(address.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    while True:
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6, backlog=1024
            )
        except OSError as error:
            if time.monotonic() > end:
                raise RunError(
                    f"process 0 cannot listen on port {port} of {socket.gethostname()}: {error}; another run may have "
                    "it: end that, or take another port"
                ) from error
            time.sleep(_RETRY_SECONDS)


def _present(callers: list[_Caller]) -> dict[int, str]:
    return {caller.index: caller.host for caller in callers if caller.index is not None}


def _read(caller: _Caller) -> bool:
    """Takes what a caller has sent; False where there will be no more, or it is none of ours."""
    try:
        part = caller.connection.recv(_MOST)
    except BlockingIOError:
        return True
    except OSError:
        return False
    caller.line += part
    if not part or len(caller.line) > _MOST:
        caller.index = None  # it has gone again
        return False
    if caller.line.endswith(b"\n"):
        try:
            said = json.loads(caller.line)
            caller.index, caller.host, caller.count = int(said["process"]), str(said["host"]), int(said["of"])
        except (ValueError, KeyError, TypeError):
            return False
    return True


def _clash(caller: _Caller, callers: list[_Caller], count: int) -> str:
    others = [other for other in callers if other is not caller and other.index == caller.index]
    if caller.count != count:
        return f"process {caller.index} on {caller.host} says it is one of {caller.count}, process 0 one of {count}"
    if others or not 0 < caller.index < count:
        hosts = " and ".join([socket.gethostname()] * (caller.index == 0) + [o.host for o in others] + [caller.host])
        return f"two processes say that they are number {caller.index}, on {hosts}; wanted 0 to {count - 1}, one each"
    return ""


def _tell(callers: list[_Caller], problem: str) -> None:
    for caller in callers:
        with contextlib.suppress(OSError):
            caller.connection.settimeout(2.0)
            caller.connection.sendall(json.dumps({"problem": problem}).encode() + b"\n")
            caller.connection.shutdown(socket.SHUT_WR)
            caller.connection.recv(1)  # they hang up first, so that the port is free for JAX at once


def _report(address: str, index: int, count: int, timeout: float) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + timeout
    said: dict[str, Any] = {"process": index, "of": count, "host": socket.gethostname(), "pid": os.getpid()}
    reason = "no answer"
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 10.0)) as connection:
                connection.settimeout(timeout + _GRACE_SECONDS)  # process 0 may have started last
                connection.sendall(json.dumps(said).encode() + b"\n")
                with connection.makefile("rb") as lines:
                    told = lines.readline(_MOST)
            if told:
                if problem := json.loads(told)["problem"]:
                    raise RunError(problem)
                return
            reason = "it hung up"
        except (OSError, ValueError) as error:  # not there yet, or gone again
            reason = str(error)
        time.sleep(_RETRY_SECONDS)
    raise RunError(
        f"process 0 of {count} did not come within {timeout:g} s: nobody calls the roll at {address} ({reason}); this "
        f"is process {index} on {socket.gethostname()}; look at what process 0 says, and whether its port is open"
    )
