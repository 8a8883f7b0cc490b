"""How long a step would take: ideally, and as one may expect, with every assumption named."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from uae_jax.plan import splitting
from uae_jax.plan.staged import Staged, is_split
from uae_jax.plan.topologies import Topology
from uae_jax.plan.work import Phase


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What one may expect of a machine, as parts of its published figures.

    Attributes:
      compute: of the arithmetic, in large matrix products of a whole program.
      memory: of the memory's bandwidth, where weights are read for little arithmetic.
      links: of the bandwidth between chips.
    """

    compute: float
    memory: float = 0.62
    links: float = 0.8


TPU, GPU = Assumptions(compute=0.5), Assumptions(compute=0.44)


def assumptions(topology: Topology) -> Assumptions:
    """Those of a kind of chip."""
    return TPU if topology.chip.is_tpu else GPU


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of a phase, in one step.

    Attributes:
      name: of the phase.
      compute, memory, links: ideally, each by itself.
      expected: the longest of the three, at what is assumed of each: they run side by side.
      apart: as expected, but that nothing is computed while chips wait for others.
      bound: which of them that is.
      sent: bytes that each chip receives.
    """

    name: str
    compute: float
    memory: float
    links: float
    expected: float
    apart: float
    bound: str
    sent: float

    @property
    def ideal(self) -> float:
        """Without communication."""
        return max(self.compute, self.memory)


def timed(staged: Staged, phases: list[Phase], topology: Topology) -> list[Timed]:
    """Times every phase; what of the axes tensor and sequence is counted is said in `splitting`, see `uncounted`."""
    assumed, chip = assumptions(topology), topology.chip
    trees = _weights(staged)
    mesh = staged.mesh.shape
    shared = mesh["tensor"] * mesh["sequence"]  # chips, neighbours, that share the samples of a place
    split, copies = mesh["fsdp"], mesh["data"] * mesh["sequence"]  # gradients are of a chip's own tokens
    images = staged.experiment.batch_size * shared / topology.count
    micro = staged.experiment.accumulate * staged.stage.updates
    itemsize = staged.dtype.itemsize
    result = []
    for phase in phases:
        frozen, trained = trees.get(phase.weights, ([], []))
        whole, missing = _sizes([*frozen, *trained], staged.mesh)
        cut = 1 if phase.stack is None else splitting.split(phase.stack, mesh).heads
        read = phase.passes * (whole * itemsize + phase.cache * images / cut)
        gathered = (phase.passes if phase.sent is None else phase.sent) * missing * itemsize
        passed = images * splitting.sent(phase.stack, mesh, itemsize) if phase.stack else 0.0
        seconds = gathered / topology.links_among(split * shared) + passed / topology.links_among(shared)
        sent = gathered + passed
        if phase.trained:
            own = sum(map(_shard, trained))
            scattered = micro * _sizes(trained, staged.mesh)[1] * itemsize  # as products with activations give it
            reduced = staged.stage.updates * 2 * 4 * own * (copies - 1) / copies
            seconds += scattered / topology.links_among(split * shared) + reduced / topology.links_among(topology.count)
            sent += scattered + reduced
        compute, memory = images * _own(phase, staged) / chip.flops, read / chip.bandwidth
        parts = {
            "compute": compute / assumed.compute,
            "memory": memory / assumed.memory,
            "links": seconds / assumed.links,
        }
        bound = max(parts, key=parts.get)
        apart = max(parts["compute"], parts["memory"]) + parts["links"]
        result.append(Timed(phase.name, compute, memory, seconds, parts[bound], apart, bound, sent))
    return result


def _own(phase: Phase, staged: Staged) -> float:
    """Operations that a chip does of a phase for an image of its place of the batch."""
    mesh, work = staged.mesh, phase.work
    if phase.stack is not None:
        laid = splitting.split(phase.stack, mesh.shape)
        return work.linear * laid.linear + work.attention * laid.attention
    if phase.weights == "vae":
        micro = staged.experiment.accumulate * staged.stage.updates
        return work.total / splitting.image_parts(staged.experiment.batch_size // micro, mesh)
    return work.linear / mesh.shape["tensor"] + work.attention


def uncounted(phases: list[Phase], mesh: Mapping[str, int]) -> str:
    """Says what is left out of times on a mesh; "" if nothing is that would be sent."""
    if mesh["tensor"] * mesh["sequence"] == 1:
        return ""
    others = [phase.name for phase in phases if phase.stack is None and phase.weights != "vae"]
    named = f"all that mesh.tensor and mesh.sequence send in {', '.join(others)}; " if others else ""
    return named + "the putting of text behind patches, and sums for modulation, which are small"


def _weights(staged: Staged) -> dict[str, tuple[list[Any], list[Any]]]:
    """Whose -> (frozen leaves, trained leaves), with their shardings."""
    state, frozen, _ = staged.placed(staged.mesh)
    if getattr(staged.stage, "uae", None) is None:
        return {name: (jax.tree.leaves(frozen), jax.tree.leaves(state.params)) for name in ("encoder", "vae", "model")}
    result = {}
    for name in ("encoder", "projector", "decoder", "vae", "judges"):
        result[name] = (jax.tree.leaves(frozen.get(name, {})), jax.tree.leaves(state.params.get(name, {})))
    # Captions are read by the language model; its vision tower is a sixth, and passed once.
    language = traverse_util.flatten_dict(frozen.get("encoder", {}).get("params", {}), sep="/")
    kept = [leaf for path, leaf in language.items() if path.startswith("language")]
    result["encoder"] = (kept, result["encoder"][1])
    return result


def _sizes(leaves: list[Any], mesh: Any) -> tuple[float, float]:
    """(numbers of whole weights as a chip works on them, numbers of them that it has to be sent)."""
    whole = sum(leaf.size / (mesh.shape["tensor"] if is_split(leaf, "tensor") else 1) for leaf in leaves)
    return whole, whole - sum(map(_shard, leaves))


def _shard(leaf: Any) -> int:
    """Numbers of a leaf that one chip holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape))
