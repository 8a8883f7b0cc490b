"""Several stages, one after the other: each may start from the results of those before it.

Where a field of a stage's settings says "previous", it gets the model folder of the stage before; where it says
"previous:NAME", that of the stage of this name.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax import paths
from uae_jax.training import loop, results
from uae_jax.training.config import Experiment
from uae_jax.training.results import MODEL

PREVIOUS = "previous"
Named = tuple[str, Experiment]


def train_stages(experiments: Sequence[Named], workdir: Path, *, quiet: bool = False) -> list[Path]:
    """Runs stages in order, see `uae_jax.training.loop.train`.

    Args:
      experiments: name and experiment of each; a single one works in `workdir` itself, several in folders below it.
      workdir: local or "gs://..."; whatever of the run is there already is not done again.
      quiet: no progress bar.

    Returns:
      each stage's model folder.

    Raises:
      ValueError: if something does not fit, in any of the stages; before anything is allocated.
      Stopped: on SIGTERM, after saving.
    """
    workdir = paths.as_path(workdir)
    folders = stage_folders(experiments, workdir)
    if results.finished(folders[0]) is None:
        _look_ahead(untrained(experiments)[1:], folders[1:])
    models: dict[str, Path] = {}
    beside: dict[str, str] = {}  # the same, as seen from a stage's own folder
    for (name, experiment), folder in zip(experiments, folders, strict=True):
        drawn = _drawn_on(name, experiment.settings, models)
        started, recorded = (
            _changed(experiment, {field: str(there[stage]) for field, stage in drawn.items()})
            for there in (models, beside)
        )
        began = {beside[stage]: models[stage].parent for stage in drawn.values()}
        began |= results.named(experiment.settings)
        others = [value for value in results.models(experiment.settings) if value.split(":")[0] != PREVIOUS]
        models[name] = loop.train(
            started, folder, name=name, quiet=quiet, recorded=recorded, began=began, models=others
        )
        beside[name] = f"../{folder.name}/{MODEL}"
    return list(models.values())


def stage_folders(experiments: Sequence[Named], workdir: Path) -> list[Path]:
    """Where each stage works."""
    if len(experiments) == 1:
        return [workdir]
    return [workdir / f"{number}_{name}" for number, (name, _) in enumerate(experiments, start=1)]


def untrained(experiments: Sequence[Named]) -> list[Named]:
    """Each with the model that its "previous" goes back to, which is of the result's kind and there from the start.

    Raises:
      ValueError: where an earlier stage is named that there is none of.
    """
    models: dict[str, str] = {}
    found = []
    for name, experiment in experiments:
        drawn = _drawn_on(name, experiment.settings, models)
        begun = _changed(
            experiment, {field: models[stage] if field == "model" else "" for field, stage in drawn.items()}
        )
        models[name] = getattr(begun.settings, "model", "")
        found.append((name, begun))
    return found


def _look_ahead(experiments: Sequence[Named], folders: Sequence[Path]) -> None:
    """Finds out before the first stage what would stop a later one, hours after."""
    for (name, experiment), folder in zip(experiments, folders, strict=True):
        try:
            loop.opened(experiment, folder)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _drawn_on(name: str, settings: Any, before: Mapping[str, Any]) -> dict[str, str]:
    """Which settings are results of earlier stages: field -> stage."""
    drawn = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not isinstance(value, str) or value.split(":")[0] != PREVIOUS:
            continue
        wanted = value.partition(":")[2] or next(reversed(before), "")
        if wanted not in before:
            there = f"there are {', '.join(before)}" if before else "no stage comes before it"
            raise ValueError(f"{name}: settings.{field.name} is {value!r}, but {there}")
        drawn[field.name] = wanted
    return drawn


def _changed(experiment: Experiment, settings: dict[str, str]) -> Experiment:
    return dataclasses.replace(experiment, settings=dataclasses.replace(experiment.settings, **settings))
