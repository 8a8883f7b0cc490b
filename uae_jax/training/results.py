"""What a stage leaves to those after it: a model folder, the step that it is of, and who has begun from which.

workdir/model/           the result, once the last step is done
workdir/finished.json    the step that the result is of; written after it
workdir/began_from.json  earlier results that the stage began from -> their steps; and a digest of each other model
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax import paths
from uae_jax.parallel import processes
from uae_jax.training import metrics
from uae_jax.weights import fingerprint, new

MODEL = "model"
_FINISHED = "finished.json"
_BEGAN_FROM = "began_from.json"
_WEIGHTS = "weights"
_MODELS = ("model", "encoder_from", "decoder_from", "vae_from")  # settings of stages that name one


def finish(workdir: Path, step: int) -> None:
    """Says that the result is there, and of which step. All processes at once."""
    if processes.is_main():
        paths.write(workdir / _FINISHED, json.dumps({"step": step}) + "\n")
    processes.from_main(None)  # what comes next may read it


def finished(workdir: Path) -> int | None:
    """The step that the result is of; None where there is no result, or it was not written to its end."""
    record = _read(workdir / _FINISHED) if paths.is_whole(workdir / MODEL) else None
    return None if record is None else int(record["step"])


def begun(workdir: Path) -> bool:
    """Whether there is anything of a run to lose: a checkpoint, a reading or a result. If not, the folder is free."""
    with paths.os_errors(workdir):
        checkpoints = workdir / "checkpoints"
        saved = checkpoints.is_dir() and any(checkpoints.glob("[0-9]*"))
        return saved or (workdir / MODEL).exists() or bool(metrics.read_history(workdir))


def begin(workdir: Path, results: Mapping[str, Path], models: Sequence[str] = ()) -> None:
    """Remembers what a stage begins from; refuses to go on from anything else than it began from.

    What a run begins from may be the result of another, which is made longer later on. What it has trained by then, an
    adapter and moments, fits the earlier result and no other. What has not begun may begin from any. All processes at
    once.

    Args:
      workdir: of the stage.
      results: as the stage sees them ("../1_pretrain/model") -> the folder of the stage that each is of.
      models: names of all other models whose weights it begins from.

    Raises:
      ValueError: if a result is of another step now, or a model holds other weights.
    """
    if processes.is_main():
        _begin(workdir, results, models)
    processes.from_main(None)  # none goes on where one is refused


def _begin(workdir: Path, results: Mapping[str, Path], models: Sequence[str]) -> None:
    file = workdir / _BEGAN_FROM
    before = (_read(file) or {}) if begun(workdir) else {}
    # Of what has gone, or was copied without its run, no step is known; what is done needs it no more.
    now: dict[str, Any] = {name: finished(folder) or before.get(name) for name, folder in results.items()}
    now[_WEIGHTS] = before.get(_WEIGHTS, {}) | {name: fingerprint.of_content(name) for name in models}
    if before:
        for name, folder in results.items():
            if before.get(name) not in (None, now[name]):
                raise ValueError(
                    f"{workdir}: began from {folder} as of step {before[name]}, which is of step {now[name]} now; "
                    f"remove {workdir} to train it anew, or take another --workdir"
                )
        for name, digest in now[_WEIGHTS].items():
            if before.get(_WEIGHTS, {}).get(name, digest) != digest:
                raise ValueError(
                    f"{workdir}: began from {name}, which holds other weights or settings now; put back what it held, "
                    f"take another --workdir, or remove {file} to go on all the same"
                )
    if results or models:
        paths.write(file, json.dumps(now, indent=2) + "\n")


def models(settings: Any) -> list[str]:
    """The models that a stage's settings name, but for those that are made anew."""
    values = [getattr(settings, name, "") for name in _MODELS]
    return [value for value in dict.fromkeys(values) if value and not value.startswith(new.NEW)]


def named(settings: Any) -> dict[str, Path]:
    """Settings that name a result of another run: as they do -> the run's folder."""
    values = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    return {value: paths.as_path(value).parent for value in values if str(value).endswith(f"/{MODEL}")}


def _read(file: Path) -> dict | None:
    with paths.os_errors(file):
        return json.loads(file.read_text()) if file.exists() else None
