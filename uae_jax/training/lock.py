"""One run at a time works in a folder."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from uae_jax import paths
from uae_jax.parallel import processes

FILE = ".lock"


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps other runs out of a folder: `with held(workdir): ...`. Of several processes the main one keeps it.

    The lock goes with the process, however that ends. It is POSIX's, which is not handed on to the data's workers, as
    that of `flock` would be: of those some may outlive a run that is killed. A bucket has none, nor do some file
    systems; there nobody is kept out.

    Raises:
      ValueError: if another run is at work there; says which process on which host.
      OSError: if nothing can be written there.
    """
    if paths.is_remote(workdir) or not processes.is_main():
        yield
        return
    file = workdir / FILE
    with paths.os_errors(file):
        workdir.mkdir(parents=True, exist_ok=True)
        opened = file.open("a+")
    with opened:
        try:
            fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            opened.seek(0)
            who = opened.read().strip() or "another process"
            raise ValueError(f"{workdir}: {who} is training here; wait for it, or take another --workdir") from None
        except OSError:  # a file system without locks
            pass
        opened.truncate(0)
        opened.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        opened.flush()
        yield
