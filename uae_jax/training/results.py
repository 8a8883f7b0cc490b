"""What a stage leaves to those after it: a model folder, the step that it is of, and who has begun from which.

workdir/model/           the result, once the last step is done
workdir/finished.json    the step that the result is of; written after it
workdir/began_from.json  earlier results that the stage began from -> their steps
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uae_jax import paths
from uae_jax.parallel import processes
from uae_jax.training import metrics

MODEL = "model"
_FINISHED = "finished.json"
_BEGAN_FROM = "began_from.json"


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


def begin(workdir: Path, results: Mapping[str, Path]) -> None:
    """Remembers which results a stage begins from; refuses to go on from others than it began from.

    What a run begins from may be the result of another, which is made longer later on. What it has trained by then, an
    adapter and moments, fits the earlier result and no other. What has not begun may begin from any. All processes at
    once.

    Args:
      workdir: of the stage.
      results: as the stage sees them ("../1_pretrain/model") -> the folder of the stage that each is of.

    Raises:
      ValueError: if one of them is of another step now.
    """
    now = {name: finished(folder) for name, folder in results.items()}
    if (before := _read(workdir / _BEGAN_FROM)) is not None and begun(workdir):
        for name, step in now.items():
            if before.get(name, step) != step:
                raise ValueError(
                    f"{workdir}: began from {results[name]} as of step {before[name]}, which is of step {step} now; "
                    f"remove {workdir} to train it anew, or take another --workdir"
                )
    processes.from_main(None)  # all have looked before one writes
    if now and processes.is_main():
        paths.write(workdir / _BEGAN_FROM, json.dumps(now, indent=2) + "\n")


def named(settings: Any) -> dict[str, Path]:
    """Settings that name a result of another run: as they do -> the run's folder."""
    values = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    return {value: paths.as_path(value).parent for value in values if str(value).endswith(f"/{MODEL}")}


def _read(file: Path) -> dict | None:
    with paths.os_errors(file):
        return json.loads(file.read_text()) if file.exists() else None
