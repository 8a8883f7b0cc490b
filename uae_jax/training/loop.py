"""The one training loop. It knows no stage; a stage knows no loop, and neither knows what comes after.

workdir/config.json         what the run is
workdir/checkpoints/        see `uae_jax.training.checkpoints`
workdir/metrics.jsonl       one line per reading; TensorBoard events lie beside it
workdir/pictures/           what evaluations drew
workdir/profile/            where the time goes, where that was asked for
workdir/model/              the result, once the last step is done; see `uae_jax.training.results`
"""

import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax import paths
from uae_jax.data.validity import Tally
from uae_jax.errors import STOPPED, RunError
from uae_jax.parallel import global_arrays, processes
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages import registry
from uae_jax.stages.base import Parts, Stage
from uae_jax.training import configure, lock, pictures, results
from uae_jax.training.checkpoints import CheckpointStore
from uae_jax.training.compilations import Compilations
from uae_jax.training.config import Experiment
from uae_jax.training.feed import Fed, Feed
from uae_jax.training.inputs import Inputs, open_inputs
from uae_jax.training.metrics import ASIDE, Averages, MetricsWriter, Reading, set_aside
from uae_jax.training.nonfinite import BadSteps
from uae_jax.training.optimisers import make_optimiser, schedule, updates_made
from uae_jax.training.preemption import Preemption
from uae_jax.training.profiling import Profiler
from uae_jax.training.progress import Progress
from uae_jax.training.results import MODEL
from uae_jax.training.state import TrainState, make_state, planned_state
from uae_jax.training.update import make_step

Tree = Any


class Stopped(RunError):
    """The run was asked to stop; the same command goes on from its last checkpoint."""

    exit_code = STOPPED


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    name: str = "",
    quiet: bool = False,
    recorded: Experiment | None = None,
    began: Mapping[str, Path] = {},
    models: Sequence[str] = (),
) -> Path:
    """Runs one stage from its last checkpoint, or from the start, to its end; returns its model folder.

    Args:
      experiment: what is run.
      workdir: local or "gs://..."; whatever of the run is there already is not done again.
      name: by which it is spoken of.
      quiet: no progress bar.
      recorded: the experiment as `workdir` is to remember it, if other than as it is run: with no path in it by which
        this machine finds the folder.
      began, models: earlier results, and other models, that it begins from, see `results.begin`.

    Raises:
      ValueError: if something does not fit; before anything is allocated.
      Stopped: on SIGTERM, after saving.
    """
    workdir = paths.as_path(workdir)
    name = name or experiment.stage
    stage, mesh, inputs = opened(experiment, workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock.held(workdir))
        changed = remember(recorded or experiment, workdir)
        results.begin(workdir, began, () if inputs is None else models)  # what is done needs them no more
        if inputs is None:
            _say(f"{name}: done already, {workdir / MODEL}")
            return workdir / MODEL
        stack.enter_context(jax.set_mesh(mesh))
        run = stack.enter_context(Run(experiment, stage, mesh, workdir, name, quiet, inputs))
        if changed:
            run.progress.note(f"{run.name}: goes on with other settings: {'; '.join(changed)}")
        result = run.to_the_end()
        if run.preemption.requested:  # after its last step; whatever comes next has handlers of its own
            raise Stopped(f"{run.name}: told to stop, and done; the same command goes on from there")
        return result


def opened(experiment: Experiment, workdir: Path) -> tuple[Stage, Mesh, Inputs | None]:
    """Checks what a stage needs and opens what it reads, nothing if it is done; nothing is allocated or written. All
    processes at once.

    Raises:
      ValueError: if settings do not go together, or there is no such data or model; names it.
    """
    stage = registry.find(experiment.stage)(experiment.settings, experiment.seed)
    mesh = make_mesh(**dataclasses.asdict(experiment.mesh))
    if experiment.profile_steps and paths.is_remote(workdir):
        raise ValueError(f"{workdir}: profile_steps={experiment.profile_steps}, but profiles go to local workdirs only")
    check_batch(experiment, mesh, stage.updates)
    stage.check_steps(experiment.steps)
    done = processes.from_main(results.finished(workdir))
    return stage, mesh, open_inputs(experiment, stage, mesh) if done is None or done < experiment.steps else None


def check_batch(experiment: Experiment, mesh: Mesh, updates: int = 1) -> None:
    """Raises `ValueError` where the batch does not split evenly."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = devices * experiment.accumulate * updates
    if experiment.batch_size % parts:
        several = f", times {updates} updates" if updates > 1 else ""
        raise ValueError(
            f"batch_size is {experiment.batch_size}, wanted a multiple of {parts}: {devices} devices on the axes data "
            f"and fsdp, times accumulate {experiment.accumulate}{several}"
        )


def remember(experiment: Experiment, workdir: Path) -> list[str]:
    """Writes what the run is into its folder; refuses a folder of another run, if that has left anything in it.

    Returns:
      what has changed since, of what may; on the main process.

    Raises:
      ValueError: if the folder belongs to a run with other settings; names them.
      OSError: if nothing can be written there.
    """
    file = workdir / "config.json"
    # One process looks and writes; the others wait for it, as they might read what it is just writing.
    changed = _remember(experiment, file) if processes.is_main() else []
    processes.from_main(None)
    return changed


def _remember(experiment: Experiment, file: Path) -> list[str]:
    changed = []
    with paths.os_errors(file):
        before = json.loads(file.read_text()) if file.exists() else None
    if before is not None and not _is_ours(before):
        raise ValueError(f"{file}: not of a run of `uae train`, and would be overwritten; take another --workdir")
    begun = results.begun(file.parent)
    if before is None and begun:
        raise ValueError(
            f"{file.parent}: has checkpoints, metrics.jsonl or a model, and no {file.name} that says of which run, so "
            "that others' work might be overwritten; take another --workdir"
        )
    if before is not None and begun:
        changed = configure.differences(_completed(before), configure.to_json(experiment))
        bound = [line for line in changed if not line.split(":")[0].startswith(_FREE)]
        if bound:
            raise ValueError(
                f"{file.parent}: belongs to a run with other settings; take another --workdir, or undo: "
                f"{'; '.join(bound)}"
            )
    with paths.os_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    paths.write(file, json.dumps(configure.to_json(experiment), indent=2) + "\n")
    return changed


def _is_ours(record: Any) -> bool:
    """Whether it is a run's config.json, of whatever version: a model has a file of that name, too."""
    return isinstance(record, dict) and {"stage", "settings"} <= set(record)


def _completed(record: dict) -> dict:
    """What an earlier version wrote, with the settings that it did not know yet at their defaults."""
    try:
        return configure.to_json(configure.from_json(record))
    except ValueError:  # it knew others: the difference says which
        return record


# What only says how long to go on, how fast, on what, and how often to look: it may change between two starts.
_FREE = ("steps", "log_every", "evaluat", "validation", "checkpoint_every", "keep", "max_nonfinite", "mesh")
_FREE += ("profile_steps", "data.workers", "data.buffer", "data.max_bad_fraction", "optimiser.learning_rate")


class Run:
    """One stage under way: what lives as long as it does."""

    def __init__(
        self,
        experiment: Experiment,
        stage: Stage,
        mesh: Mesh,
        workdir: Path,
        name: str,
        quiet: bool,
        inputs: Inputs,
    ):
        """Keeps what it is given."""
        self.experiment, self.stage, self.mesh, self.workdir = experiment, stage, mesh, workdir
        self.name, self.quiet, self.inputs = name, quiet, inputs
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "Run":
        with contextlib.ExitStack() as stack:
            experiment = self.experiment
            self.preemption = stack.enter_context(Preemption())
            self.compilations = stack.enter_context(contextlib.closing(Compilations()))
            self.store = CheckpointStore(
                self.workdir / "checkpoints", keep=experiment.keep, keep_every=experiment.keep_every or None
            )
            stack.callback(self.store.close)
            _say(f"{self.name}: loading")
            parts = self.stage.load(self.mesh)
            self.frozen = parts.frozen
            self.state, record = self._start(parts)
            self.rate = schedule(experiment.optimiser, self.updates)
            self.bad = BadSteps.from_json(record.get("bad_steps"), experiment.max_nonfinite)
            states = record.get("data") or []  # one of each process
            self.data_states = [states] if isinstance(states, dict) else states
            # Of several processes one talks.
            silent = {} if processes.is_main() else {"file": stack.enter_context(open(os.devnull, "w"))}
            self.progress = Progress(self.name, experiment.steps, int(self.state.step), quiet=self.quiet, **silent)
            stack.callback(self.progress.close)
            if experiment.optimiser.warmup >= self.updates > 0:
                self.progress.note(
                    f"{self.name}: the learning rate rises over {experiment.optimiser.warmup} updates, and there are "
                    f"{self.updates}: it never gets where it should; lower optimiser.warmup unless this is a trial"
                )
            if not record and processes.is_main() and (last := set_aside(self.workdir)):
                self.progress.note(
                    f"{self.name}: begins anew: there are readings up to step {last} and no checkpoint; kept in {ASIDE}"
                )
            self.writer = MetricsWriter(
                self.workdir, record.get("history"), int(self.state.step), report=self.progress.note
            )
            stack.callback(self.writer.close)
            self.averages = Averages()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.stack.close()

    @property
    def updates(self) -> int:
        """Of the optimiser, in the whole run."""
        return self.experiment.steps * self.stage.updates

    def _start(self, parts: Parts) -> tuple[TrainState, dict]:
        """The newest checkpoint's state, or a fresh one; and the checkpoint's record."""
        experiment = self.experiment
        optimiser = make_optimiser(experiment.optimiser, self.updates, parts.decayed, parts.trained)
        with_ema = experiment.ema.decay > 0
        wanted = planned_state(parts, optimiser, with_ema, self.mesh)
        step = make_step(
            self.stage,
            optimiser,
            accumulate=experiment.accumulate,
            ema=experiment.ema,
            max_nonfinite=experiment.max_nonfinite,
        )
        placed = jax.tree.map(lambda leaf: leaf.sharding, wanted)
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(placed, None))
        self.evaluate = jax.jit(self.stage.evaluate)
        restored = self.store.restore(wanted)  # before there is a state: two would take what one step does not
        if restored is None:
            return make_state(parts, optimiser, experiment.seed, with_ema, self.mesh), {}
        return restored.state, restored.record

    def to_the_end(self) -> Path:
        """Steps until the last one is done; returns the model folder."""
        experiment, result = self.experiment, self.workdir / MODEL
        if (start := int(self.state.step)) < experiment.steps:
            self._steps(start)
            if table := self._tally().table():
                self.progress.note(f"{self.name}: of {self._tally().seen} records that were read\n{table}")
        self.store.wait()
        self.progress.note(f"{self.name}: writing {result}")
        params = self.state.params if self.state.ema is None else self.state.ema
        self.stage.save(params, self.state.stage, self.frozen, result)
        results.finish(self.workdir, int(self.state.step))
        self.progress.note(f"{self.name}: {result}")
        return result

    def _steps(self, start: int) -> None:
        experiment = self.experiment
        if self.preemption.requested:
            raise Stopped(f"{self.name}: stopped before step {start + 1}; the same command goes on from there")
        self.validation = self._validation_batches()
        steps = experiment.profile_steps if processes.is_main() else 0
        profiler = Profiler(self.workdir, start, steps)
        with contextlib.closing(self._feed()) as feed, contextlib.closing(profiler):
            for number in range(start + 1, experiment.steps + 1):
                fed = next(feed)
                profiler.before(number, self.state)
                self.state, metrics = self.step(self.state, self.frozen, fed.batch)
                if (profile := profiler.after(number, self.state)) is not None:
                    self.progress.note(profile)
                self.data_states = [fed.state]
                self.averages.add(number, metrics, fed.ids)
                self.progress.step(number)
                last = number == experiment.steps
                stopping = self.preemption.reached(number)
                saving = last or stopping or number % experiment.checkpoint_every == 0
                if saving or number % experiment.log_every == 0:
                    self._read_metrics(number, feed, fed.rows)
                if last or (experiment.evaluate_every and number % experiment.evaluate_every == 0):
                    self._look(number)
                if saving:
                    self._save(number)
                if stopping and not last:
                    self.store.wait()
                    raise Stopped(f"{self.name}: stopped at step {number}, saved; the same command goes on from there")

    def _feed(self) -> Feed:
        if self.data_states:
            self.inputs.data.set_state(*self.data_states)
        return Feed(self.inputs.data, self.stage.collate, self.mesh)

    def _read_metrics(self, number: int, feed: Feed, rows: Sequence[int]) -> None:
        """The host waits for the device here and nowhere else in a run of steps."""
        readings, means = self.averages.flush()
        self.progress.settled()
        if not readings:
            return
        readings = _with_all_ids(readings, rows)
        for message in self.bad.update(readings):
            self.progress.note(message)
        for failure in self.store.check():
            self.progress.note(str(failure))
        means |= self._data_counts() | {
            "learning_rate": float(self.rate(max(updates_made(self.state.moments) - 1, 0))),
            "nonfinite_steps": self.bad.count,
            "waited_for_data": feed.waited_fraction(),
            "compiled_programs": self.compilations.flush(),
        }
        if not math.isnan(rate := self.progress.rate()):  # TensorBoard warns of it
            means["steps_per_second"] = rate
        self.writer.scalars(number, means)
        self.progress.metrics(means)

    def _data_counts(self) -> dict[str, float]:
        """Records of this process that were bad or converted, as far as there are any; see `uae data inspect`."""
        tally = self._tally()
        converted = sum(count.count for count in tally.converted.values())
        counts = {"skipped_records": tally.bad, "converted_records": converted}
        return {name: float(count) for name, count in counts.items() if count}

    def _tally(self) -> Tally:
        """Of the records of this process, up to the last step."""
        return Tally.from_json(self.data_states[0]["tally"])

    def _look(self, number: int) -> None:
        """Evaluates, and draws what the stage has to show."""
        if not self.validation:
            return
        params = self.state.params if self.state.ema is None else self.state.ema
        key = jax.random.key(self.experiment.seed)
        values = [
            self.evaluate(params, self.state.stage, self.frozen, fed.batch, jax.random.fold_in(key, i))
            for i, fed in enumerate(self.validation)
        ]
        fetched = global_arrays.to_host(values)
        first = self.validation[0]
        drawn = self.stage.pictures(params, self.state.stage, self.frozen, first.batch, first.samples)
        if not processes.is_main():
            return
        found = []
        for value, fed in zip(fetched, self.validation, strict=True):
            scalars = {name: float(x) for name, x in value.items() if not np.ndim(x)}
            found.append(scalars | self.stage.judge(_arrays(value), fed.samples))
        means = {f"evaluation/{name}": float(np.mean([value[name] for value in found])) for name in found[0]}
        self.writer.scalars(number, means)
        shown = ", ".join(f"{name.removeprefix('evaluation/')} {value:.4g}" for name, value in means.items())
        self.progress.note(f"step {number}: {shown}")
        drawn += self.stage.drawn(_arrays(fetched[0]), first.samples)
        try:
            self.writer.images(number, pictures.save_pictures(self.workdir, number, drawn))
        except OSError as error:  # no picture is worth a run
            self.progress.note(f"step {number}: pictures were not written: {error}")

    def _validation_batches(self) -> list[Fed]:
        """The batches of every evaluation: always the same. Every process reads them as a whole, for the pictures."""
        loader = self.inputs.validation
        if loader is None:
            return []
        with contextlib.closing(Feed(loader, self.stage.collate, self.mesh, keep_samples=True)) as feed:
            return [next(feed) for _ in range(self.experiment.evaluation_batches)]

    def _save(self, number: int) -> None:
        self.writer.flush()
        data = [state for states in processes.gather(self.data_states) for state in states]
        record = {"data": data, "bad_steps": self.bad.to_json(), "history": self.writer.history}
        self.store.save(number, self.state, record)


def _say(message: str) -> None:
    """A line on stderr, where there is no progress to put it above yet; of several processes one talks."""
    if processes.is_main():
        print(message, file=sys.stderr, flush=True)


def _with_all_ids(readings: list[Reading], rows: Sequence[int]) -> list[Reading]:
    """Names the samples of all processes where a step was bad; what a process has read the others do not know.

    Args:
      readings: with the names of this process's samples.
      rows: which of a batch's rows those are.
    """
    bad = [reading.step for reading in readings if reading.metrics.get("nonfinite")]  # the same on all processes
    if jax.process_count() == 1 or not bad:
        return readings
    own = {str(reading.step): list(reading.ids) for reading in readings if reading.step in bad}
    shares = processes.gather({"rows": [int(row) for row in rows], "ids": own})

    def named(step: int) -> list[str]:
        found = {row: i for one in shares for row, i in zip(one["rows"], one["ids"][str(step)], strict=True)}
        return [found[row] for row in sorted(found)]

    return [dataclasses.replace(r, ids=named(r.step)) if r.step in bad else r for r in readings]


def _arrays(outputs: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: value for name, value in outputs.items() if np.ndim(value)}
