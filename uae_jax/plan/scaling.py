"""Weak scaling of the four stages on paper: a table of closed forms, written as Markdown.

    python -m uae_jax.plan.scaling --output docs/results/scaling.md

Every chip has the same work at every size. What grows is how many chips gradients are summed over; what does not is the
gathering of weights, which stays among the chips of one `fsdp` group.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from uae_jax.plan import compiling, limits, memory, recorded, staged, timing, topologies, work
from uae_jax.plan.compiling import GIB
from uae_jax.plan.recorded import Recorded
from uae_jax.plan.stand_ins import StandIns
from uae_jax.plan.topologies import Topology
from uae_jax.training import configure
from uae_jax.training.config import MeshConfig

SLICES = ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")  # 8 to 512 chips
TOPOLOGIES = {
    "v5p": tuple(f"v5p:{shape}" for shape in SLICES),
    "h100": tuple(f"h100:{8 << number}" for number in range(len(SLICES))),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A stage, and how it is laid out.

    Attributes:
      config: of `configs/`.
      per_chip: images of a batch for every chip.
      fsdp: chips that share one copy of the weights; 1 gives each its own.
      gathered: whether rollouts have them whole, see `LoopSettings.rollout_weights`.
    """

    config: str
    per_chip: int
    fsdp: int
    gathered: bool = False


CASES = (
    Case("pretrain", 32, 8),
    Case("cold_start", 8, 8),
    Case("cold_start", 8, 1),
    Case("gen_for_understanding", 4, 8),
    Case("gen_for_understanding", 4, 8, gathered=True),
    Case("gen_for_understanding", 4, 1),
    Case("understanding_for_gen", 6, 8),
    Case("understanding_for_gen", 6, 8, gathered=True),
    Case("understanding_for_gen", 6, 1),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One stage on one topology.

    Attributes:
      topology: of so many chips.
      peak: bytes on a chip.
      fits: whether they do.
      ideal, expected, apart: seconds of a step, see `timing.Timed`.
      rate: images a second on a chip, as expected.
      sent: bytes that a chip receives in a step.
    """

    topology: Topology
    peak: float
    fits: bool
    ideal: float
    expected: float
    apart: float
    rate: float
    sent: float


def study(case: Case, names: Sequence[str]) -> list[Row]:
    """Plans a stage on every topology, by closed forms."""
    rows, loaded = [], None
    for name in names:
        topology = topologies.parse(name)
        mesh, batch = MeshConfig(data=-1, fsdp=case.fsdp), case.per_chip * topology.count
        if loaded is None:
            ((_, experiment),) = configure.load_config(f"configs/{case.config}.py:size=full")
            settings = experiment.settings
            if case.gathered:
                settings = dataclasses.replace(settings, rollout_weights="gathered")
            experiment = dataclasses.replace(experiment, settings=settings, mesh=mesh, batch_size=batch)
            loaded = staged.load(experiment, topology.count, StandIns("full"))
        loaded = loaded.on(topology.count, mesh, batch)
        need = memory.estimate(loaded)
        times = timing.timed(loaded, work.phases(loaded), topology)
        expected = sum(each.expected for each in times)
        rows.append(
            Row(
                topology,
                need.peak,
                need.peak <= limits.share(topology.chip) * topology.chip.memory,
                sum(each.ideal for each in times),
                expected,
                sum(each.apart for each in times),
                batch / expected / topology.count,
                sum(each.sent for each in times),
            )
        )
    return rows


def line(case: Case, rows: Sequence[Row]) -> str:
    """A line of the table: figures of the fewest chips, and efficiency of all sizes over them."""
    first = rows[0]
    peak = f"{first.peak / GIB:.0f}{'' if all(row.fits for row in rows) else ' (too much)'}"
    kept = " | ".join(f"{row.rate / first.rate:.0%}, {first.apart / row.apart:.0%}" for row in rows[1:])
    fsdp = f"{case.fsdp}{' (gathered)' if case.gathered else ''}"
    return (
        f"| {case.config} | {case.per_chip} | {fsdp} | {peak} | {rows[-1].sent / 1e9:,.0f} | {first.ideal:,.1f} | "
        f"{first.expected:,.1f} | {first.apart:,.1f} | {first.rate:.3f} | {kept} |"
    )


def table(kind: str) -> str:
    """Markdown of one kind of chip: a line for each case."""
    names = TOPOLOGIES[kind]
    assumed = timing.assumptions(topologies.parse(names[0]))
    chips = [str(topologies.parse(name).count) for name in names]
    heads = ["stage", "images/chip", "fsdp", "peak GiB", "GB received", "ideal s", "expected s", "in turn s"]
    heads += [f"images/s/chip on {chips[0]}", *chips[1:]]
    return "\n".join(
        [
            f"## {kind}\n",
            f"Expected: the slowest of {assumed.compute:.0%} of arithmetic, {assumed.memory:.0%} of memory bandwidth, "
            f"{assumed.links:.0%} of links.\n",
            f"| {' | '.join(heads)} |",
            f"| --- |{' ---: |' * (len(heads) - 1)}",
            *(line(case, study(case, names)) for case in CASES),
        ]
    )


def held() -> str:
    """Markdown: the closed forms beside what the compiler is on record for, and which stages it has none of."""
    found = recorded.entries()
    without = [name for name in dict.fromkeys(case.config for case in CASES) if name not in {e.stage for e in found}]
    parts = [
        _HELD,
        "| stage | topology | fsdp | images/chip | compiler | peak GiB, compiled | closed form | apart |\n"
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |\n" + "\n".join(map(_held, found)),
        "\n".join(_sends(each) for each in found if each.collectives),
        f"Of {' and '.join(without)} no compilation is on record: their figures are held to nothing."
        if without
        else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _held(case: Recorded) -> str:
    loaded = case.load()
    peak, chips = memory.estimate(loaded).peak / GIB, loaded.mesh.size
    return (
        f"| {case.stage} | {case.topology} | {loaded.mesh.shape['fsdp']} | {loaded.experiment.batch_size // chips} | "
        f"{case.compiler} | {case.peak_gib:.2f} | {peak:.2f} | {peak / case.peak_gib - 1:+.1%} |"
    )


def _sends(case: Recorded) -> str:
    """What a recorded program sends; results within a loop count once, as they stand in the program."""
    kinds = "; ".join(f"{each}, {each.total / 2**20:,.0f} MiB together" for each in case.collectives)
    return f"- {case.stage} on {case.topology} sends, each result of the program once: {kinds}."


_HELD = """## Held to the compiler

What the TPU compiler said of a stage's whole step (`uae_jax/plan/recorded.json`, which tests hold the closed forms to,
within 10%), and by how much the closed form of a chip's peak differs from it. Work is held to traced programs of the
tiny model, within 4%; times and GB received are held to nothing."""


_HEAD = """# Weak scaling, on paper

Written by `python -m uae_jax.plan.scaling`; nothing here was measured. Full size (`size=full` of `configs/`:
Qwen2.5-VL-3B, SD3.5-Large, 512 pixels, captions of 512 tokens), every chip with the same work at every size, by the
closed forms of `uae plan`. A line is a stage and a layout: weights lie once on every `fsdp` chips.

- *peak*, *GB received*: of one chip, in one step, on most chips.
- *ideal*: seconds of a step on the fewest chips, at published arithmetic and memory bandwidth, without communication.
- *expected*: in every phase of a step, the slowest of arithmetic, memory and links, at the stated parts of what is
  published: communication runs beside computation.
- *in turn*: the same, but that nothing is computed while chips wait for others. The truth lies between the two.
- The last columns: images a second and chip on so many chips over those on the fewest, as expected, and in turn.
- Captions are as long as allowed. In truth they end at different lengths, and all chips go on until the last one of a
  batch has: that loss grows with the batch and is left out, as are input, evaluations, checkpoints, and slices that
  are joined over a data centre's network.
- Weights that are split over chips are taken to be gathered in every pass over them, in decoding for every token; where
  it says *gathered* (`settings.rollout_weights`), once for all captions and once for all paintings of a step.
- Gradients are summed over copies of the weights once per update, in float32; over the chips of an `fsdp` group in
  every micro-batch (below, pretrain on 64 chips)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="Markdown file to write (default: print it)")
    parser.add_argument("--chips", nargs="+", default=list(TOPOLOGIES), choices=list(TOPOLOGIES), help="which kinds")
    options = parser.parse_args()
    compiling.look_for_no_device()
    text = "\n\n".join([_HEAD, *map(table, options.chips), held()]) + "\n"
    if options.output is None:
        print(text, end="")
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text)


if __name__ == "__main__":
    main()
