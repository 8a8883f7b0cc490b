"""Counts the programs that XLA compiles: in a run that goes as it should, none after its first steps."""

from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # also where a program comes out of the compilation cache


class Compilations:
    """Counts from its making until `close`, whoever compiles."""

    def __init__(self) -> None:
        self._count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, _seconds: float, **_: Any) -> None:
        self._count += event == _EVENT

    def flush(self) -> int:
        """How many there were since the last call."""
        count, self._count = self._count, 0
        return count

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
