"""One stage on one topology: everything that is said of it, from the compiler where there is one."""

import dataclasses
import math
from typing import Any

import jax

from uae_jax.plan import compiling, limits, memory, splitting, staged, timing, work
from uae_jax.plan.collectives import Collective, collectives, weight_reductions
from uae_jax.plan.compiling import Compiled
from uae_jax.plan.memory import Memory
from uae_jax.plan.stand_ins import StandIns
from uae_jax.plan.timing import Assumptions, Timed
from uae_jax.plan.topologies import Topology
from uae_jax.plan.work import Phase
from uae_jax.training.config import Experiment

TILE = 4  # rows; weights whose parts have no multiple of it were seen to be summed instead of gathered
_LARGE = 2**20  # numbers of a weight that is worth a warning


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage's step takes on a topology.

    Attributes:
      name: of the stage in its config.
      experiment: as configured.
      topology: where.
      mesh: sizes of its axes.
      counts: trained and frozen parameters, on all chips together.
      memory: by closed forms.
      phases: work for an image of the batch, by closed forms.
      times: of a step.
      assumptions: that times were made with.
      compiled: what the compiler says; None where there is none.
      why_not: why there is none.
      collectives: of the compiled program.
      warnings: what should be changed.
      uncounted: what is sent and left out of times; "" where nothing is.
      stand_ins: name -> what a model that is not there was taken for.
    """

    name: str
    experiment: Experiment
    topology: Topology
    mesh: dict[str, int]
    counts: dict[str, int]
    memory: Memory
    phases: list[Phase]
    times: list[Timed]
    assumptions: Assumptions
    compiled: Compiled | None
    why_not: str
    collectives: list[Collective]
    warnings: list[str]
    uncounted: str
    stand_ins: dict[str, str]

    @property
    def limit(self) -> float:
        """Bytes that a program may take of a chip."""
        return limits.share(self.topology.chip) * self.topology.chip.memory

    @property
    def peak(self) -> float:
        """Bytes on a chip, of the compiler if there is one."""
        return self.memory.peak if self.compiled is None else self.compiled.peak

    @property
    def fits(self) -> bool:
        return self.peak <= self.limit

    @property
    def remedy(self) -> str:
        """What of the environment would make it fit; "" where nothing would, or nothing need."""
        return limits.remedy(self.topology.chip, self.peak)

    @property
    def largest(self) -> int:
        """The largest micro-batch on a chip that fits; where the compiler was asked, closed forms go on from there."""
        return self.memory.largest(self.limit, self.peak - self.memory.peak)

    @property
    def flops(self) -> float:
        """For one image."""
        return work.total(self.phases).total

    @property
    def ideal(self) -> float:
        """Seconds of a step at the published speed, without communication."""
        return sum(each.ideal for each in self.times)

    @property
    def expected(self) -> float:
        return sum(each.expected for each in self.times)


def plan(name: str, experiment: Experiment, topology: Topology, stand_ins: StandIns, closed_form: bool = False) -> Plan:
    """Plans a stage.

    Args:
      name: of the stage in its config.
      experiment: of it.
      topology: where it would run.
      stand_ins: for models that are not there.
      closed_form: compile nothing.

    Raises:
      ValueError: if the config does not fit the topology.
    """
    loaded = staged.load(experiment, topology.count, stand_ins)
    why_not = "closed forms were asked for" if closed_form else compiling.missing(topology)
    compiled = None if why_not else compiling.compile_step(loaded, topology)
    found = [] if compiled is None else collectives(compiled.hlo)
    state, frozen, _ = loaded.placed(loaded.mesh)
    phases = work.phases(loaded)
    warnings = misaligned((state.params, frozen)) if topology.chip.is_tpu else []
    warnings += shared(phases, dict(loaded.mesh.shape))
    if summed := weight_reductions(found, (state.params, frozen)):
        warnings.append(f"the program sums whole weights over all chips instead of gathering them: {', '.join(summed)}")
    return Plan(
        name=name,
        experiment=experiment,
        topology=topology,
        mesh=dict(loaded.mesh.shape),
        counts={"trained": _count(state.params), "frozen": _count(frozen)},
        memory=memory.estimate(loaded),
        phases=phases,
        times=timing.timed(loaded, phases, topology),
        assumptions=timing.assumptions(topology),
        compiled=compiled,
        why_not=why_not,
        collectives=found,
        warnings=warnings,
        uncounted=timing.uncounted(phases, loaded.mesh.shape),
        stand_ins=dict(stand_ins.made),
    )


def shared(phases: list[Phase], mesh: dict[str, int]) -> list[str]:
    """Warns of what the axes tensor and sequence leave whole, so that chips do the same work: each thing once."""
    if mesh["tensor"] * mesh["sequence"] == 1:
        return []
    stacks = [phase.stack for phase in phases if phase.stack]
    said = [say(stack, mesh) for say in (splitting.repeated, splitting.whole) for stack in stacks]
    return [each for each in dict.fromkeys(said) if each]


def misaligned(tree: Any) -> list[str]:
    """Warns of large weights that the mesh axis fsdp cuts into parts which do not fill the TPU compiler's tiles."""
    found = set()
    for leaf in jax.tree.leaves(tree):
        if leaf.size < _LARGE:
            continue
        parts = leaf.sharding.shard_shape(leaf.shape)
        for whole, part, axes in zip(leaf.shape, parts, leaf.sharding.spec, strict=False):
            if "fsdp" in (axes or ()) and part % TILE:
                fsdp = leaf.sharding.mesh.shape["fsdp"]
                found.add((whole, part, _better(part * fsdp, fsdp)))
    return [
        f"weights of side {whole} are cut into parts of {part}, no multiple of {TILE}: the TPU compiler was seen to "
        "sum such weights over all chips instead of gathering them, which sends several times as much; cut them "
        f"into {better} parts by mesh.fsdp, and give the rest of the chips to mesh.data"
        for whole, part, better in sorted(found)
        if better
    ]


def _better(side: int, parts: int) -> int:
    """The largest number of parts below the given one that leaves multiples of a tile; 0 if none does."""
    return next((n for n in range(parts - 1, 0, -1) if parts % n == 0 and (side // n) % TILE == 0), 0)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
