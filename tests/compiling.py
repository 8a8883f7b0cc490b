"""What XLA compiles while something runs."""

import contextlib

from uae_jax.training.compilations import Compilations


@contextlib.contextmanager
def compilations():
    """A list that grows by one with every program that XLA compiles, loose operations included."""
    with contextlib.closing(Compilations()) as counted:
        yield counted.names
