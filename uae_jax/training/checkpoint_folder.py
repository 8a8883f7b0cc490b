"""The folder that a run's checkpoints lie in: their names, which of them is whole, how one appears and goes.

    00001000/           the checkpoint of step 1000; see `uae_jax.training.manifest`
    00000900.corrupt/   one that was found damaged; never taken, never deleted
    .tmp-.../           one being written or deleted; left by a killed run, the next run removes it

On a file system a checkpoint is written under a temporary name, forced to the disk and renamed. A bucket cannot rename:
there it has its name from the start, with a file "unfinished" in it until all else is there.
"""

import logging
import os
import re
import time

from etils import epath

from uae_jax.errors import RunError
from uae_jax.paths import UNFINISHED, os_errors
from uae_jax.training import manifest

_TEMPORARY = ".tmp-"
_CORRUPT = ".corrupt"
_STEP = re.compile(r"[0-9]{8,}")
_ASIDE = re.compile(r"[0-9]{8,}\.corrupt(-[0-9]+)?")
_PAUSE = 0.1  # seconds

log = logging.getLogger(__name__)


class CheckpointError(RunError):
    """Checkpoints cannot be written or restored; the message names the folder, step or file, and the remedy."""


class CheckpointFolder:
    """One folder; only one process changes it."""

    def __init__(self, path: str | os.PathLike, run: str):
        """Names the folder, which need not exist.

        Args:
          path: local, or in a bucket ("gs://...").
          run: part of temporary names. Should two runs be started in one folder, neither writes into the other's files.
        """
        path = epath.Path(path)
        self.path = path.expanduser().absolute() if manifest.is_local(path) else path  # Orbax wants absolute paths
        self._renames = manifest.is_local(path)
        self._run = run

    def at(self, step: int) -> epath.Path:
        """Where the checkpoint of a step is, or would be."""
        return self.path / f"{step:08d}"

    def working(self, step: int) -> epath.Path:
        """Where the checkpoint of a step is written."""
        return self.path / f"{_TEMPORARY}{self._run}-{step:08d}" if self._renames else self.at(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints, rising, whether or not they are intact."""
        named = [path for path in self._entries() if _STEP.fullmatch(path.name)]
        return sorted(int(path.name) for path in named if not self._is_unfinished(path))

    def latest(self) -> int | None:
        """The last of `steps`; None if there is none."""
        return max(self.steps(), default=None)

    def begin(self, step: int) -> None:
        """Makes the folder in which a checkpoint is written.

        Raises:
          OSError: if it cannot be made, or is there.
        """
        working = self.working(step)
        working.mkdir(parents=True)
        if not self._renames:
            (working / UNFINISHED).write_text("")

    def commit(self, step: int) -> None:
        """Makes a checkpoint of what was written.

        Raises:
          OSError: if it cannot; then there is none of this step.
        """
        working = self.working(step)
        manifest.write(working, step)
        if self._renames:
            working.rename(self.at(step))
            manifest.sync(self.path)
        else:
            (working / UNFINISHED).unlink()

    def choose(self) -> int | None:
        """Finds the newest intact checkpoint, and sets aside the damaged ones before it.

        Returns:
          its step; None only if there never was one.

        Raises:
          CheckpointError: if there are checkpoints but none is intact, or one cannot be read.
        """
        before = [path.name for path in self._entries() if _ASIDE.fullmatch(path.name)]
        found = []
        for step in reversed(self.steps()):
            problems = self._problems(step)
            if not problems:
                if found:
                    log.warning("%s: going on from step %d", self.path, step)
                return step
            found.append(self._set_aside(self.at(step)))
            log.error("%s: damaged, now named %s: %s", self.at(step), found[-1], "; ".join(problems))
        if before or found:
            raise CheckpointError(
                f"{self.path}: no intact checkpoint, only {', '.join(before + found)}; bring one back from a copy, or "
                "remove these to start from the beginning"
            )
        return None

    def check(self, step: int) -> None:
        """Raises `CheckpointError` unless there is an intact checkpoint of this step."""
        if step not in self.steps():
            raise CheckpointError(f"{self.path}: no checkpoint of step {step}; there are {self.steps() or 'none'}")
        if problems := self._problems(step):
            raise CheckpointError(f"{self.at(step)}: damaged: {'; '.join(problems)}; take another step")

    def prune(self, keep: int, keep_every: int | None) -> None:
        """Deletes all but the newest `keep` and the multiples of `keep_every`; what cannot be deleted is logged."""
        for step in self.steps()[:-keep]:
            if keep_every is not None and step % keep_every == 0:
                continue
            path = self.at(step)
            try:  # no half deleted folder may look like a damaged checkpoint
                with os_errors(path):
                    if self._renames:
                        path = path.rename(self.path / f"{_TEMPORARY}{self._run}-{step:08d}-old")
                    else:
                        (path / UNFINISHED).write_text("")
                    path.rmtree()
            except OSError as error:
                log.warning("%s: cannot be deleted: %s", path, error)

    def sweep(self, *, tries: int = 1) -> None:
        """Removes what was left half written or half deleted; what cannot be removed is logged.

        Args:
          tries: at most, a tenth of a second apart, until nothing is left; more than one after a write that failed:
            TensorStore's other threads still write then, and make even the folder anew.
        """
        for number in range(tries):
            time.sleep(_PAUSE if number else 0.0)
            refused = [(path, self._remove(path)) for path in self._entries() if self._is_left(path)]
            if not refused:
                return
        for path, error in refused:
            if error is not None:
                log.warning("%s: cannot be removed: %s", path, error)

    def _remove(self, path: epath.Path) -> OSError | None:
        try:
            with os_errors(path):
                path.rmtree() if path.is_dir() else path.unlink()
        except OSError as error:
            return error
        return None

    def _is_left(self, path: epath.Path) -> bool:
        """Whether it is half written or half deleted."""
        return path.name.startswith(_TEMPORARY) or (bool(_STEP.fullmatch(path.name)) and self._is_unfinished(path))

    def _problems(self, step: int) -> list[str]:
        try:
            with os_errors(self.at(step)):
                return manifest.problems(self.at(step), step)
        except OSError as error:  # says nothing about the checkpoint, so that is left as it is
            raise CheckpointError(f"{self.at(step)}: cannot be read: {error}; try again once it can") from error

    def _set_aside(self, folder: epath.Path) -> str:
        taken = {path.name for path in self._entries()}
        name, number = folder.name + _CORRUPT, 2
        while name in taken:
            name, number = f"{folder.name}{_CORRUPT}-{number}", number + 1
        folder.rename(self.path / name)
        return name

    def _entries(self) -> list[epath.Path]:
        return sorted(self.path.iterdir()) if self.path.is_dir() else []

    def _is_unfinished(self, path: epath.Path) -> bool:
        return not self._renames and (path / UNFINISHED).exists()
