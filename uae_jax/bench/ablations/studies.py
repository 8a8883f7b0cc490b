"""Ablations as files: what each compares, the runs that it takes, and how these are measured."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax.plain import ConfigError, from_plain, nearest
from uae_jax.rewards.reconstruction import UNIFIED
from uae_jax.tiny.figures import Look
from uae_jax.training import config_files, configure
from uae_jax.training.chain import stage_folders
from uae_jax.training.config import Experiment
from uae_jax.training.results import MODEL

UNTRAINED = "untrained"  # what `AGAINST` calls the model that all runs start from


def told_apart(text: str) -> str:
    """A short name of a text, of no other one but by an accident that nobody will see."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training; arms that are trained alike share it.

    Attributes:
      config: what `uae train --config` takes.
      stages: name and experiment of each.
    """

    config: str
    stages: tuple[tuple[str, Experiment], ...]

    @functools.cached_property
    def name(self) -> str:
        """Of its folder: its stages, and what tells it from all other runs."""
        told = json.dumps([(name, configure.to_json(experiment)) for name, experiment in self.stages], sort_keys=True)
        names = dict.fromkeys(re.sub(r"_\d+$", "", name) for name, _ in self.stages)  # of one round
        return "+".join([*names, told_apart(told)])

    @property
    def start(self) -> str:
        """The model that it starts from."""
        return self.stages[0][1].settings.model

    @property
    def rewarded(self) -> tuple[str, ...]:
        """Scorers that reward in any of its stages."""
        parts = [part for _, experiment in self.stages for part in getattr(experiment.settings, "reward", ())]
        return tuple(name for name in UNIFIED if any(part.name == name and part.weight for part in parts))

    def look(self, otherwise: Mapping[str, Any]) -> Look:
        """How its result is measured: as its last stage was trained, or otherwise."""
        settings = self.stages[-1][1].settings
        trained = {"interface": getattr(settings, "interface", "text")}
        if text := getattr(settings, "text", None):
            trained["conditioning"] = text.conditioning
        if paint := getattr(settings, "paint", None):
            trained["guidance"] = paint.guidance
        return from_plain(Look, {**trained, **otherwise}, self.config)

    def result(self, folder: Path) -> Path:
        """Its model, which is there when it is done."""
        return stage_folders(self.stages, folder)[-1] / MODEL

    def shared(self, other: "Run") -> int:
        """How many of its stages, from the first on, are those of another run, and need be trained once."""
        together = zip(self.stages, other.stages, strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], together)))


@dataclasses.dataclass(frozen=True)
class Study:
    """One file.

    Attributes:
      name: of the file.
      question: the first line of its docstring.
      file: where it is.
      arms: name -> fields of `Look` in which it is measured otherwise than it was trained.
      against: the arm that all are compared with, or `UNTRAINED`, measured as the arm itself.
    """

    name: str
    question: str
    file: Path
    arms: dict[str, dict[str, Any]]
    against: str

    def run(self, arm: str, seed: int, **options: Any) -> Run:
        """What an arm's training is; `options` of the file's config, None for those that stay as the file says."""
        more = "".join(f",{name}={value}" for name, value in options.items() if value is not None)
        config = f"{self.file}:arm={arm},seed={seed}{more}"
        return Run(config, tuple(configure.load_config(config)))


def read(folder: Path, only: Sequence[str] = ()) -> list[Study]:
    """The ablations of a folder, by name.

    Args:
      folder: of files with `ARMS` and `get_config`.
      only: names that are wanted; all where there are none.

    Raises:
      ConfigError: if there are none, one that is wanted is missing, or a file's constants will not do.
    """
    studies = {file.stem: study for file in sorted(folder.glob("*.py")) if (study := _read(file))}
    if not studies:
        raise ConfigError(f"{folder} has no ablations; go to the top of the repository, or say --configs")
    for name in only:
        if name not in studies:
            raise ConfigError(f"no ablation is called {name!r}; the nearest is {nearest(name, studies)!r}")
    return [study for name, study in studies.items() if not only or name in only]


def _read(file: Path) -> Study | None:
    found = config_files.constants(str(file))
    if "ARMS" not in found:
        return None
    arms = found["ARMS"]
    if not isinstance(arms, dict) or len(arms) < 2 or not all(isinstance(look, dict) for look in arms.values()):
        raise ConfigError(f"{file}: ARMS is {arms!r}, wanted two names or more, each with what is measured otherwise")
    against = found.get("AGAINST", next(iter(arms)))
    if against not in (*arms, UNTRAINED):
        raise ConfigError(f"{file}: AGAINST is {against!r}, wanted {UNTRAINED!r} or one of {', '.join(arms)}")
    question = (found["__doc__"] or file.stem).strip().splitlines()[0]
    return Study(file.stem, question, file, arms, against)
