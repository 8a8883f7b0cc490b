"""What a compiled program sends between chips, read off its text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

import jax

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
_FUSED = "all-reduce-scatter"  # a fusion of this name is a reduce-scatter, though an all-reduce stands in it
_SMALL = 2**20  # numbers; what is smaller does no harm


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a program.

    Attributes:
      kind: of `KINDS`.
      count: how many stand in the program.
      in_loops: of those, how many are run once per round of a loop.
      total: bytes of all results on one chip, each once, however many rounds its loop has.
      largest: of one result.
      shapes: of the results with at least a million numbers, "bf16[2432,9728]", and how often each stands there.
    """

    kind: str
    count: int
    in_loops: int
    total: int
    largest: int
    shapes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.count} ({self.in_loops} in loops, largest {self.largest / 2**20:.1f} MiB)"


def collectives(hlo: str) -> list[Collective]:
    """Counts the collectives of an optimised program, in the order of `KINDS`.

    Of a choice's branches only the last counts: texts at their full width, see `uae_jax.sampling.widths`.
    """
    bodies = _computations(hlo)
    branches = [re.findall(r"[\w.-]+", each) for each in re.findall(r"branch_computations=\{(.*?)\}", hlo)]
    passed_over = _reachable(bodies, {name for names in branches for name in names[:-1]})
    bodies = {name: lines for name, lines in bodies.items() if name not in passed_over}
    looped = _reachable(bodies, set(re.findall(r"(?:body|condition)=%?([\w.-]+)", hlo)))
    found = collections.defaultdict(list)
    for name, lines in bodies.items():
        for line in lines:
            for kind in KINDS:
                if re.search(rf" {kind}(-start)?\(", line):
                    really = "reduce-scatter" if name.startswith(_FUSED) else kind
                    found[really].append((name in looped, *_largest_result(line)))
    return [_summed(kind, found[kind]) for kind in KINDS if kind in found]


def _summed(kind: str, calls: list[tuple[bool, str, int]]) -> Collective:
    counts = collections.Counter(shape for _, shape, _ in calls if _numbers(shape) >= _SMALL)
    sizes = [size for *_, size in calls]
    inside = sum(loop for loop, *_ in calls)
    return Collective(kind, len(calls), inside, sum(sizes), max(sizes), tuple(counts.most_common()))


def weight_reductions(found: Iterable[Collective], split: Any) -> list[str]:
    """Names all-reduces of the whole of a weight that chips hold in parts.

    Such a weight is to be gathered, and its gradient scattered. Where its parts do not fill the compiler's tiles, it
    fills them up with zeros and adds them all instead, which sends several times as much.

    Args:
      found: of `collectives`.
      split: tree of `ShapeDtypeStruct` with shardings; of a stack, one layer is at work at a time.
    """
    shapes = {shape: times for each in found if each.kind == "all-reduce" for shape, times in each.shapes}
    weights = whole_shapes(split)
    return [f"{shape} x {times}" for shape, times in shapes.items() if _sides(shape) in weights]


def whole_shapes(split: Any) -> set[tuple[int, ...]]:
    """Shapes, sides sorted and those of 1 left out, of the leaves that are split over chips, stacks layer by layer."""
    result = set()
    for leaf in jax.tree.leaves(split):
        if len(leaf.shape) > 1 and leaf.sharding.shard_shape(leaf.shape) != leaf.shape:
            result |= {_sorted(leaf.shape), _sorted(leaf.shape[1:])}
    return {shape for shape in result if len(shape) > 1}


def _computations(hlo: str) -> dict[str, list[str]]:
    """Cuts HLO text into named computations."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in hlo.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            lines = bodies.setdefault(head[1], [])
        else:
            lines.append(line)
    return bodies


def _reachable(bodies: dict[str, list[str]], names: set[str]) -> set[str]:
    """The named computations and all that they call."""
    called = {name: set(re.findall(r"%([\w.-]+)", "\n".join(lines))) & bodies.keys() for name, lines in bodies.items()}
    seen: set[str] = set()
    while names:
        seen |= names
        names = {other for name in names for other in called.get(name, ())} - seen
    return seen


def _largest_result(line: str) -> tuple[str, int]:
    """Type and bytes of the largest array that an instruction yields."""
    result = line.split(" = ", 1)[1]
    result = re.split(r" [\w-]+\(", result, maxsplit=1)[0]
    sizes = [("", 0)]
    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", result):
        shape = f"{dtype}[{dims}]"
        sizes.append((shape, _BYTES.get(dtype, 8) * _numbers(shape)))
    return max(sizes, key=lambda pair: pair[1])


def _sides(shape: str) -> tuple[int, ...]:
    return _sorted(int(side) for side in re.findall(r"\d+", shape.partition("[")[2]))


def _sorted(sides: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(side for side in sides if side > 1))


def _numbers(shape: str) -> int:
    return math.prod(_sides(shape))
