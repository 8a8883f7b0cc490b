"""How long a step would take: ideally, and as one may expect, with every assumption named."""

import dataclasses
import math
from typing import Any

import jax
from flax import traverse_util

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
    """Times every phase; traffic of the axes tensor and sequence is left out."""
    assumed, chip = assumptions(topology), topology.chip
    trees = _weights(staged)
    mesh = staged.mesh.shape
    split, copies = mesh["fsdp"], mesh["data"]
    images = staged.experiment.batch_size / topology.count
    micro = staged.experiment.accumulate * staged.stage.updates
    itemsize = staged.dtype.itemsize
    result = []
    for phase in phases:
        frozen, trained = trees.get(phase.weights, ([], []))
        whole, missing = _sizes([*frozen, *trained], staged.mesh)
        read = phase.passes * (whole * itemsize + phase.cache * images)
        gathered = (phase.passes if phase.sent is None else phase.sent) * missing * itemsize
        seconds = gathered / topology.links_among(split)
        sent = gathered
        if phase.trained:
            own = sum(map(_shard, trained))
            scattered = micro * _sizes(trained, staged.mesh)[1] * itemsize  # as products with activations give it
            reduced = staged.stage.updates * 2 * 4 * own * (copies - 1) / copies
            seconds += scattered / topology.links_among(split) + reduced / topology.links_among(split * copies)
            sent += scattered + reduced
        compute, memory = phase.work.total * images / chip.flops, read / chip.bandwidth
        parts = {
            "compute": compute / assumed.compute,
            "memory": memory / assumed.memory,
            "links": seconds / assumed.links,
        }
        bound = max(parts, key=parts.get)
        apart = max(parts["compute"], parts["memory"]) + parts["links"]
        result.append(Timed(phase.name, compute, memory, seconds, parts[bound], apart, bound, sent))
    return result


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
