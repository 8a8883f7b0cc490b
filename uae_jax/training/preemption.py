"""Being asked to stop: the run finishes its step, saves and exits."""

import contextlib
import os
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Turns SIGTERM, and a first SIGINT (Ctrl-C), into a flag: `with Preemption() as preemption: ...`.

    A second SIGINT raises KeyboardInterrupt, for whoever does not want to wait. On leaving, the handlers are what they
    were. Outside the main thread, where Python takes no handlers, nothing is installed and nothing ever requested.

    In a run of several processes all must stop after the same step, whichever of them was told. There JAX's
    preemption service keeps SIGTERM and spreads the news: ask `reached` after every step.
    """

    def __init__(self) -> None:
        self._requested = False
        self._interrupted = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread() and jax.process_count() == 1:
            for number, handler in ((signal.SIGTERM, self._terminate), (signal.SIGINT, self._interrupt)):
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            # None: a handler that was not set from Python cannot be given back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether this process was told to stop."""
        return self._requested

    def reached(self, step: int) -> bool:
        """Whether all processes are to stop now, after this step.

        Args:
          step: steps done; all processes must ask after every one of them.
        """
        if jax.process_count() == 1:
            return self._requested
        return multihost_utils.reached_preemption_sync_point(step)

    def _terminate(self, number: int, frame: Any) -> None:
        self._requested = True
        _say("told to stop: saves after the step under way")

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._requested = self._interrupted = True
        _say("told to stop: saves after the step under way; Ctrl-C again ends it at once")


def _say(message: str) -> None:
    """Past Python's buffers, which whoever was interrupted may be in the middle of."""
    with contextlib.suppress(OSError):
        os.write(2, f"\nuae: {message}\n".encode())
