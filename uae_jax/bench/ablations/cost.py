"""How long a run will take, about: by how fast others of its stages went, or as two CPU cores do it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from uae_jax.bench.ablations.studies import Run
from uae_jax.training.chain import stage_folders
from uae_jax.training.config import Experiment
from uae_jax.training.metrics import read_history

# Seconds for one sample, caption or painting of the tiny size: the third estimated from a random model's first steps
# on a crowded machine, the others from the work that they do beside it. Right to a factor of two or three.
SECONDS = {"pretrain": 0.05, "cold_start": 0.3, "gen_for_understanding": 0.2, "understanding_for_gen": 0.2}


def seconds(run: Run, speeds: Mapping[str, float] = {}, before: Iterable[Run] = ()) -> float:
    """Of the stages that it does not share with a run before it, without compiling, evaluating and measuring.

    Args:
      run: what will be trained.
      speeds: as of `observed`.
      before: what will have been trained by then.
    """
    known = {**SECONDS, **speeds}
    own = run.stages[max(map(run.shared, before), default=0) :]
    return sum(known.get(e.stage, 0.0) * e.steps * _rows(e) for _, e in own)


def observed(runs: Iterable[Run], folder: Path) -> dict[str, float]:
    """Stage -> seconds for one sample, caption or painting, of what was run in a folder already."""
    found = defaultdict(list)
    for run in runs:
        for (_, experiment), own in zip(run.stages, stage_folders(run.stages, folder / run.name), strict=True):
            rates = [line["steps_per_second"] for line in read_history(own) if line.get("steps_per_second")]
            if rates:
                found[experiment.stage].append(1 / np.median(rates) / _rows(experiment))
    return {stage: float(np.median(values)) for stage, values in found.items()}


def spoken(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def _rows(experiment: Experiment) -> int:
    """Of a step."""
    return experiment.batch_size * getattr(experiment.settings, "group", 1)
