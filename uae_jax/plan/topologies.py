"""Accelerators and how they are joined: "v5p:4x4x4", "v6e:2x4", "h100:8".

Figures are the vendors', per chip: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and the H100 and H200 SXM data
sheets, dense bfloat16. Bandwidths between chips are what one chip can send, all its links together. Slices are those
that these pages list; of v4 and v5p, whose list is of the common ones, what its rule allows.
"""

import dataclasses
import difflib
import itertools
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as topologies name it.
      flops: bfloat16, per second.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      links: to other chips of the slice or the node, bytes per second.
      network: beyond the node, bytes per second; 0 where a slice has no such border.
      node: chips of a node, which `links` join.
      axes: of the torus; 0 for GPUs, which have none.
      options: what libtpu wants to know to compile for it.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    network: float = 0.0
    node: int = 0
    axes: int = 0
    options: tuple[tuple[str, object], ...] = ()

    @property
    def is_tpu(self) -> bool:
        return self.axes > 0


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # all slices of v5e and v6e
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))  # of v4 and v5p; larger ones have sides in multiples of four
_CUBE = 4
_BY_GCLOUD = re.compile(r"(v4|v5p|v5litepod|v5e|v6e)-(\d+)")  # v4 and v5p by cores, two a chip; the others by chips

_MEGACORE = (("chip_config_name", "megacore"), ("chips_per_host_bounds", (2, 2, 1)))  # else v4 shows two devices a chip

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32e9, 1.228e12, 300e9, axes=3, options=_MEGACORE),
        Chip("v5e", 197e12, 16e9, 0.819e12, 200e9, axes=2),
        Chip("v5p", 459e12, 95e9, 2.765e12, 600e9, axes=3),
        Chip("v6e", 918e12, 32e9, 1.640e12, 400e9, axes=2),
        Chip("h100", 989e12, 80e9, 3.35e12, 450e9, network=50e9, node=8),
        Chip("h200", 989e12, 141e9, 4.8e12, 450e9, network=50e9, node=8),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, joined.

    Attributes:
      name: as given.
      chip: of which kind.
      shape: of the torus, or the number of GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Chips."""
        return math.prod(self.shape)

    def links_among(self, chips: int) -> float:
        """Bytes per second that each of so many neighbouring chips can send to the others."""
        chip = self.chip
        return chip.network if chip.node and chips > chip.node else chip.links


def parse(name: str) -> Topology:
    """Reads a topology's name.

    Raises:
      ValueError: on an unknown chip, with the nearest, a shape that chip is not joined in, or gcloud's name of a slice,
        with the one that is wanted here.
    """
    kind, colon, rest = name.strip().lower().partition(":")
    if by_gcloud := _BY_GCLOUD.fullmatch(kind):
        raise ValueError(f"topology {name!r}: {_translated(by_gcloud[1], int(by_gcloud[2]))}")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
        raise ValueError(f"topology {name!r}: the nearest chip is {near!r}; all: {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    example = {3: "4x4x4", 2: "4x4", 0: "8"}[chip.axes]
    if not colon or not re.fullmatch(r"\d+(x\d+)*", rest):
        raise ValueError(f"topology {name!r}: wanted chips behind a colon, as in {kind}:{example}")
    shape = tuple(int(side) for side in rest.split("x"))
    if min(shape) < 1:
        raise ValueError(f"topology {name!r}: holds no chip, wanted numbers from 1, as in {kind}:{example}")
    if len(shape) != max(chip.axes, 1):
        raise ValueError(f"topology {name!r}: {kind} is laid out like {kind}:{example}, got {len(shape)} sides")
    if chip.node and shape[0] > chip.node and shape[0] % chip.node:
        raise ValueError(f"topology {name!r}: wanted at most {chip.node} chips, or whole nodes of {chip.node}")
    if chip.is_tpu and not _exists(shape):
        near = " and ".join(f"{kind}:{'x'.join(map(str, each))}" for each in _nearest(shape))
        raise ValueError(f"topology {name!r}: there is no such slice of {kind}; the nearest are {near}")
    return Topology(name, chip, shape)


def _exists(shape: tuple[int, ...]) -> bool:
    """Whether there is such a slice; sides are listed from the shortest, as the vendor does."""
    if len(shape) == 2:
        return shape in _FLAT
    return shape in _SMALL or (not any(side % _CUBE for side in shape) and tuple(sorted(shape)) == shape)


def _nearest(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The two slices nearest to a shape, fewer chips first: in the number of chips, then in their sides."""
    known = _known(len(shape), max(shape))
    wanted, ordered = math.prod(shape), sorted(shape)

    def distance(other: tuple[int, ...]) -> tuple[int, int]:
        apart = sum(abs(a - b) for a, b in zip(sorted(other), ordered, strict=True))
        return abs(math.prod(other) - wanted), apart

    return sorted(sorted(known, key=distance)[:2], key=math.prod)


def _known(axes: int, side: int) -> list[tuple[int, ...]]:
    """All slices of so many axes, none of much longer sides."""
    if axes == 2:
        return list(_FLAT)
    sides = range(_CUBE, max(-(-side // _CUBE), 1) * _CUBE + 1, _CUBE)
    return [*_SMALL, *itertools.combinations_with_replacement(sides, 3)]


def _translated(kind: str, number: int) -> str:
    """What gcloud means by a slice of that name, and how it is called here; of several shapes the roundest."""
    chip = CHIPS["v5e" if kind == "v5litepod" else kind]
    cores = 2 if chip.axes == 3 else 1
    counted = f"{number} cores, which are {number // cores} chips" if cores > 1 else f"{number} chips"
    known = sorted(_known(chip.axes, 32), key=lambda shape: (abs(math.prod(shape) * cores - number), sum(shape)))
    wanted = "wanted" if math.prod(known[0]) * cores == number else "there is no such slice; the nearest is"
    return f"gcloud names slices so, this one of {counted}; {wanted} {chip.name}:{'x'.join(map(str, known[0]))}"
