"""What `uae bench ablate` does.

WORKDIR/runs/NAME/      each training, a folder of `uae train`; stages that another one has gone through are links
WORKDIR/measured/       figures of each model and scene; what is measured needs its model no more
WORKDIR/weights.json    a digest of each model that is trained or measured as it is
WORKDIR/ablations.json  the table, and in ablations.md to read; ablations that are not asked for keep what they had
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np

from uae_jax.bench.ablations import cost, studies, table
from uae_jax.bench.ablations.studies import UNTRAINED, Run, Study, told_apart
from uae_jax.data.caption_files import write_whole
from uae_jax.tiny import compare
from uae_jax.tiny.compare import Ratios
from uae_jax.tiny.figures import Look, Scenes
from uae_jax.training import chain
from uae_jax.training.results import MODEL
from uae_jax.weights import fingerprint, new

TABLE = "ablations.json"
WEIGHTS = "weights.json"


def ablate(args: argparse.Namespace) -> int:
    """Trains and measures whatever is missing; writes and prints the table. Or lists what there is to do."""
    workdir = Path(args.workdir).expanduser()
    if args.scenes < 1 or len(set(args.seeds)) < len(args.seeds):
        raise ValueError(f"--scenes is {args.scenes}, --seeds {args.seeds}; wanted at least 1, and each seed once")
    wanted = studies.read(Path(args.configs).expanduser(), args.only or ())
    runs = {study.name: _runs(study, args.seeds, steps=args.steps, stage=args.stage) for study in wanted}
    figures = Figures(workdir / "measured", args.scenes)
    each: dict[str, Run] = {}
    unmeasured: dict[str, list[Look]] = {}
    for run, look in _looks(wanted, runs):
        each.setdefault(run.name, run)  # spoken of by the first arm that it serves
        if not figures.file(run.name, look).exists():
            unmeasured.setdefault(run.name, []).append(look)

    def trained(run: Run) -> bool:
        return run.result(workdir / "runs" / run.name).is_dir()

    if args.list:
        done = {name for name, run in each.items() if name not in unmeasured or trained(run)}
        print(listing(runs, each, done, workdir))
        return 0
    kept(workdir)  # what cannot be read is said now, not after training
    check_weights(workdir / WEIGHTS, {run.start for run in each.values()})
    measuring = Measuring(figures, workdir / "runs", Scenes.sample(args.scenes))
    for number, (name, run) in enumerate(each.items(), start=1):
        if name not in unmeasured:
            continue
        link_shared(run, each.values(), workdir / "runs")
        if not trained(run):
            print(f"uae: run {number} of {len(each)}: {run.config}", file=sys.stderr)
            chain.train_stages(run.stages, workdir / "runs" / name, quiet=args.quiet)
        for look in unmeasured[name]:
            measuring.of_run(run, look)  # at once: whatever ends the next run, of this one there is something to show
        gc.collect()
        jax.clear_caches()  # the programs of one run are of no use to the next
    how = {"steps": args.steps, "stage": args.stage}
    found = {study.name: _study(study, runs[study.name], args.seeds, measuring) | how for study in wanted}
    whole = kept(workdir) | found
    write_whole(workdir / TABLE, json.dumps(whole, indent=2) + "\n")
    write_whole(workdir / "ablations.md", table.to_markdown(whole))
    print(json.dumps(found) if args.json else table.to_markdown(found))
    return 0


def kept(workdir: Path) -> dict[str, Any]:
    """The table that earlier calls made, of all ablations that they were asked for.

    Raises:
      ValueError: if the file holds something else.
    """
    file = workdir / TABLE
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        table.to_markdown(found)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file} is no table of ablations; remove it, or choose another --workdir") from None
    return found


def check_weights(file: Path, models: Iterable[str]) -> None:
    """Remembers which weights runs begin from: their names, which say what is done, are those of models, not of these.

    Raises:
      ValueError: if a model holds others than when earlier runs began.
      WeightsError: if there is no such model.
    """
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    now = {name: fingerprint.of_content(name) for name in sorted(models) if not name.startswith(new.NEW)}
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            raise ValueError(
                f"{file.parent}: runs and figures are of another {name}, which holds other weights or settings now; "
                f"take another --workdir, or remove {file} to have them in one table all the same"
            )
    if now.keys() - before.keys():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(before | now, indent=2) + "\n")


def link_shared(run: Run, others: Iterable[Run], folder: Path) -> None:
    """Has a run find the stages that it shares with others done, as far as they are: links to the others' folders."""
    for other in others:
        owns, theirs = (chain.stage_folders(each.stages, folder / each.name) for each in (run, other))
        for own, done in list(zip(owns, theirs, strict=False))[: run.shared(other)]:
            if own.is_symlink() and not own.exists():
                own.unlink()  # to a run that was deleted
            if (done / MODEL).is_dir() and not own.exists():
                own.parent.mkdir(parents=True, exist_ok=True)
                own.symlink_to(os.path.relpath(done, own.parent), target_is_directory=True)


def listing(
    runs: Mapping[str, Mapping[str, Sequence[Run]]], each: Mapping[str, Run], done: Set[str], workdir: Path
) -> str:
    """A line for each run: what it costs, whether it is done, and which arms it serves."""
    serves: dict[str, list[str]] = {name: [] for name in each}
    for study, arms in runs.items():
        for arm, seeds in arms.items():
            for run in seeds:
                serves[run.name].append(f"{study}/{arm}")
    lines, left, speeds = [], 0.0, cost.observed(each.values(), workdir / "runs")
    for number, (name, run) in enumerate(each.items()):
        takes = cost.seconds(run, speeds, list(each.values())[:number])
        left += 0.0 if name in done else takes
        told = "done" if name in done else cost.spoken(takes)
        seed = run.stages[0][1].seed
        lines.append(f"{told:>12}  seed {seed}  {name}  {', '.join(serves[name])}")
    how = "as fast as those before" if speeds else "roughly, on two CPU cores"
    return "\n".join([*lines, f"{cost.spoken(left):>12}  left, of {len(each)} runs; {how}"])


@dataclasses.dataclass(frozen=True)
class Figures:
    """A folder of figures of models, each by a name that tells it from all others, on the first `scenes` scenes."""

    folder: Path
    scenes: int

    def file(self, name: str, look: Look) -> Path:
        parts = [name, *(str(value) for value in dataclasses.astuple(look) if value is not None)]
        return self.folder / f"{'-'.join(parts)}-{self.scenes}.npz"

    def read(self, name: str, look: Look) -> Ratios:
        with np.load(self.file(name, look), allow_pickle=False) as stored:
            return dict(stored)

    def write(self, name: str, look: Look, ratios: Ratios) -> None:
        file = self.file(name, look)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.{os.getpid()}.part")  # another command may measure the same
        with part.open("wb") as written:
            np.savez_compressed(written, **ratios)
        part.replace(file)


@dataclasses.dataclass(frozen=True)
class Measuring:
    """Figures of models on the same scenes; what was measured before is read."""

    figures: Figures
    runs: Path
    scenes: Scenes

    def of_start(self, model: str, look: Look) -> Ratios:
        """Of what is trained, before it is."""
        return self._of(f"{UNTRAINED}+{told_apart(model)}", model, look)

    def of_run(self, run: Run, look: Look) -> Ratios:
        """Of what a training has made."""
        return self._of(run.name, str(run.result(self.runs / run.name)), look)

    def _of(self, name: str, model: str, look: Look) -> Ratios:
        if not self.figures.file(name, look).exists():
            self.figures.write(name, look, compare.measure(model, self.scenes, look))
        return self.figures.read(name, look)


def _runs(study: Study, seeds: Sequence[int], **options: Any) -> dict[str, list[Run]]:
    return {arm: [study.run(arm, seed, **options) for seed in seeds] for arm in study.arms}


def _looks(wanted: Iterable[Study], runs: Mapping[str, Mapping[str, Sequence[Run]]]) -> Iterator[tuple[Run, Look]]:
    """Every run, and how it is measured for each arm that it serves."""
    for study in wanted:
        for arm, seeds in runs[study.name].items():
            yield from ((run, run.look(study.arms[arm])) for run in seeds)


def _study(study: Study, runs: Mapping[str, Sequence[Run]], seeds: Sequence[int], measuring: Measuring) -> dict:
    def trained(arm: str) -> list[Ratios]:
        return [measuring.of_run(run, run.look(study.arms[arm])) for run in runs[arm]]

    arms = {}
    for arm, (first, *_) in runs.items():
        if study.against == UNTRAINED:
            control = [measuring.of_start(first.start, first.look(study.arms[arm]))] * len(runs[arm])
            rewarded = first.rewarded
        else:
            control = trained(study.against)
            rewarded = (*first.rewarded, *runs[study.against][0].rewarded)
        figures: dict[str, Any] = table.arm_row(trained(arm), control, rewarded)
        arms[arm] = {"rewarded": list(first.rewarded), "runs": [run.config for run in runs[arm]], "figures": figures}
    about = {"question": study.question, "against": study.against, "seeds": list(seeds)}
    return {**about, "scenes": measuring.figures.scenes, "arms": arms}
