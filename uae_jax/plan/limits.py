"""How much of a chip's memory a program may take."""

import os

from uae_jax.plan.compiling import SHARE
from uae_jax.plan.topologies import Chip

# What JAX takes of a GPU at its start, all that it ever has: docs.jax.dev/en/latest/gpu_memory_allocation.html
GPU = 0.75
GPU_MOST = 0.92  # leaves some 6 GB of 80 to the driver, to cuDNN and to NCCL
VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the newer name, and the usual one


def share(chip: Chip) -> float:
    """The part of the memory that a program has; on GPUs the environment may say another.

    Raises:
      ValueError: if what it says is no number above 0.
    """
    if chip.is_tpu:
        return SHARE
    for name in VARIABLES:
        if said := os.environ.get(name, ""):
            try:
                value = float(said)
            except ValueError:
                value = 0.0
            if not value > 0:
                raise ValueError(f"{name} is {said!r}, wanted a part of the memory, as .92")
            return min(value, 1.0)
    return GPU


def remedy(chip: Chip, need: float) -> str:
    """What would make a program fit that needs so many bytes, and does not; "" if nothing here would."""
    if chip.is_tpu or not share(chip) * chip.memory < need <= GPU_MOST * chip.memory:
        return ""
    return f"it would with {VARIABLES[1]}={f'{GPU_MOST:g}'.lstrip('0')} in the environment of the run"
