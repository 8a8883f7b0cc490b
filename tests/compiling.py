"""Counts what XLA compiles."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """A list that grows by one with every program that XLA compiles, loose operations included."""
    names = []

    def listen(event: str, _seconds: float, **kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(kwargs.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
