"""Ahead-of-time compilation for TPUs that are not there, by the compiler in libtpu."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import time
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from uae_jax.parallel.mesh import make_mesh, use_mesh
from uae_jax.plan.staged import Staged
from uae_jax.plan.topologies import Topology

GIB = 2**30
SHARE = 0.9  # of a TPU's memory that a program may take
_NO_CLOUD = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program; bytes are per chip.

    Attributes:
      peak: the most that is in use at a time.
      arguments: of which state, frozen weights and batch.
      donated: arguments whose place results take.
      temporaries: allocated beside arguments and results.
      flops: as counted by the compiler: a loop's body once, a Pallas kernel not at all.
      seconds: that compiling took.
      hlo: the optimised program.
    """

    peak: int
    arguments: int
    donated: int
    temporaries: int
    flops: float
    seconds: float
    hlo: str


def missing(topology: Topology) -> str:
    """Why nothing can be compiled for a topology; "" if it can."""
    if not topology.chip.is_tpu:
        return f"there is no compiler for {topology.chip.name} without one"
    if importlib.util.find_spec("libtpu") is None:
        return f"libtpu is not installed: pip install '{pinned_libtpu()}'"
    return ""


def look_for_no_device() -> None:
    """Keeps jax and libtpu from looking for accelerators, here or in a cloud; to be called before jax is first used."""
    os.environ.update({name: value for name, value in _NO_CLOUD.items() if name not in os.environ})
    jax.config.update("jax_platforms", "cpu")


def pinned_libtpu() -> str:
    """What to install for this jax, e.g. "libtpu==0.0.42.*"."""
    wanted = [line for line in importlib.metadata.requires("jax") or () if line.startswith("libtpu")]
    return wanted[0].split(";")[0].strip().replace(" ", "") if wanted else "libtpu"


def devices(topology: Topology) -> list[Any]:
    """Devices to compile for.

    Raises:
      ValueError: if libtpu knows no such slice.
    """
    look_for_no_device()
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **dict(topology.chip.options)
        ).devices
    except Exception as error:  # of several kinds; all mean that there is no such slice
        raise ValueError(f"topology {topology.name}: libtpu does not know it: {str(error).splitlines()[0]}") from None
    if len(found) != topology.count:
        raise ValueError(f"topology {topology.name}: libtpu has {len(found)} devices, wanted {topology.count}")
    return found


def compile_step(staged: Staged, topology: Topology) -> Compiled:
    """Compiles the loop's step of a stage for a topology: minutes on a few CPU cores."""
    mesh = make_mesh(**dataclasses.asdict(staged.experiment.mesh), devices=devices(topology))
    state, frozen, batch = staged.placed(mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    # What a step does not read (half of a VAE) lies in memory all the same.
    step = jax.jit(staged.step(), donate_argnums=0, out_shardings=(placed, None), keep_unused=True)
    return compile_program(step, (state, frozen, batch), mesh)


def compile_program(program: Any, arguments: tuple, mesh: Mesh) -> Compiled:
    """Compiles a jitted program for the devices of a mesh."""
    start = time.perf_counter()
    with use_mesh(mesh):
        compiled = program.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    return Compiled(
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        donated=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        flops=cost.get("flops", 0.0),
        seconds=seconds,
        hlo=compiled.as_text(),
    )
