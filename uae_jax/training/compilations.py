"""Counts the programs that XLA compiles: in a run that goes as it should, none after its first steps."""

from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"  # also where a program comes out of the compilation cache


class Compilations:
    """Counts from its making until `close`, whoever compiles.

    Attributes:
      names: of the functions compiled since the last `flush`.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, _seconds: float, **about: Any) -> None:
        if event == _EVENT:
            self.names.append(about.get("fun_name", "?"))

    def flush(self) -> int:
        """How many there were since the last call."""
        count = len(self.names)
        self.names.clear()
        return count

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
