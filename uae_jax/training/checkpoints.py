"""Checkpoints of a run: what was written is found again bit by bit, or not taken for good.

checkpoints/00001000/     one checkpoint: the state after step 1000; see `uae_jax.training.checkpoint_folder`
  arrays/                 Orbax, every leaf of the state; see `uae_jax.training.arrays`
  leaves.json             path -> shape and dtype
  record.json             what of the run is no array: the data iterator's state and the like
  manifest.json           size and SHA-256 of every file; written last
"""

import collections
import dataclasses
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from uae_jax.training import arrays, manifest, records
from uae_jax.training.checkpoint_folder import CheckpointError, CheckpointFolder

__all__ = ["CheckpointError", "CheckpointFailure", "CheckpointStore", "Restored"]

ARRAYS, LEAVES, RECORD = "arrays", "leaves.json", "record.json"
_BARRIER_MILLISECONDS = 30 * 60 * 1000  # by so much may the slowest process's writing lag behind the fastest's
_SWEEPS = 10  # a second, for what TensorStore still has in hand when a write fails
_NONE, _FAILED = -1, -2

log = logging.getLogger(__name__)
Tree = Any


@dataclasses.dataclass(frozen=True)
class CheckpointFailure:
    """A checkpoint that could not be written; the ones before it are whole."""

    step: int
    message: str

    def __str__(self) -> str:
        return f"the checkpoint of step {self.step} could not be written: {self.message}"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back: the state after `step`, in the wanted shardings, and the record saved with it."""

    step: int
    state: Tree
    record: dict[str, Any]


@dataclasses.dataclass
class _Job:
    """One checkpoint on its way. `copied` is set once the state's own buffers are no longer needed."""

    step: int
    leaves: arrays.Leaves
    described: dict[str, Any]
    record: str
    working: epath.Path
    copied: threading.Event


class CheckpointStore:
    """The checkpoints of one run. All processes make one, and call `save` and `restore` together.

    A checkpoint that cannot be written is no reason to lose a run: it is logged, and `check` returns it. Only when
    `max_failures` in a row could not be written do `check`, `save` and `wait` raise; and `close` does if the last one
    could not, as the folder then lacks what the run ended with.

    Only one store at a time may be at a folder: on making, it removes what killed runs left half written.

    Attributes:
      folder: absolute path.
      failures_in_a_row: checkpoints that could not be written since the last one that could.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 2,
        keep_every: int | None = None,
        asynchronous: bool = True,
        max_failures: int = 3,
    ):
        """Opens a folder, which need not exist.

        Args:
          folder: local, or in a bucket ("gs://..."); the same for all processes.
          keep: newest checkpoints that are kept, at least 1; with 2 or more there is one to fall back to.
          keep_every: checkpoints of its multiples are kept for good.
          asynchronous: return from `save` once the arrays are copied, and write in a thread.
          max_failures: in a row, after which it is an error.

        Raises:
          ValueError: on numbers below 1.
        """
        for name, number in (("keep", keep), ("keep_every", keep_every), ("max_failures", max_failures)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}, wanted at least 1")
        self.failures_in_a_row = 0
        self._keep, self._keep_every = keep, keep_every
        self._asynchronous, self._max_failures = asynchronous, max_failures
        self._unreported: collections.deque[CheckpointFailure] = collections.deque()  # filled by the writing thread
        self._row: list[CheckpointFailure] = []
        self._thread: threading.Thread | None = None
        self._at: int | None = None  # step that this run last saved or restored
        self._saves = 0
        self._main = jax.process_index() == 0
        self._run = f"{_from_main(uuid.uuid4().int & 0x7FFFFFFF):08x}"
        self._folder = CheckpointFolder(folder, self._run)
        self.folder = self._folder.path
        if self._main:
            self._folder.sweep()

    def save(self, step: int, state: Tree, record: dict[str, Any]) -> None:
        """Saves the state after a step; its buffers may be donated as soon as this returns.

        Waits for the save before it. Saving once more the step that was saved or restored last does nothing.

        Args:
          step: above that of every checkpoint in the folder.
          state: tree of `jax.Array`, typed PRNG keys among them, sharded in any way.
          record: anything that JSON keeps as it is.

        Raises:
          CheckpointError: if too many in a row could not be written, or there is a checkpoint of this step or a later
            one, say because the run went back to an earlier one.
          TypeError, ValueError: if state or record hold what cannot be stored.
        """
        self._join()
        self._raise_if_too_many()
        leaves = arrays.flatten(state)
        text = records.to_text(record)
        latest = self._folder.latest()
        if step == self._at == latest:
            return
        if step < 0 or (latest is not None and step <= latest):
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be saved, wanted one above {-1 if latest is None else latest}; "
                "move later checkpoints elsewhere, or go on in another folder"
            )
        job = _Job(
            step=step,
            leaves=arrays.snapshot(leaves),
            described=arrays.describe(leaves),
            record=text,
            working=self._folder.working(step),
            copied=threading.Event(),
        )
        self._saves += 1
        self._thread = threading.Thread(target=self._run_job, args=(job,), name=f"checkpoint-{step}")
        self._thread.start()
        if self._asynchronous:
            job.copied.wait()
        else:
            self._join()

    def check(self) -> list[CheckpointFailure]:
        """Returns the failures since the last call, at once; cheap enough for every step.

        Raises:
          CheckpointError: if too many in a row could not be written.
        """
        self._raise_if_too_many()
        return [self._unreported.popleft() for _ in range(len(self._unreported))]

    def wait(self) -> list[CheckpointFailure]:
        """Waits for the save under way; otherwise like `check`."""
        self._join()
        return self.check()

    def close(self) -> None:
        """Waits for the save under way.

        Raises:
          CheckpointError: if the last checkpoint could not be written.
        """
        self._join()
        if self.failures_in_a_row:
            if self._main:
                self._folder.sweep(tries=_SWEEPS)
            raise CheckpointError(f"{self.folder}: {self._row[-1]}{self._where_things_stand()}")

    def latest(self) -> int | None:
        """The newest checkpoint's step, whether or not it is intact; None if there is none."""
        return self._folder.latest()

    def restore(self, abstract_state: Tree, step: int | None = None) -> Restored | None:
        """Reads the newest intact checkpoint, or that of one step.

        A damaged one is logged with its files, renamed to `<step>.corrupt`, and the next older one is taken.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` with shardings, of any mesh; shapes and dtypes as stored.
          step: wants this one and no other.

        Returns:
          None only if there never was a checkpoint.

        Raises:
          CheckpointError: if there are checkpoints but none is intact, if that of `step` is not there or damaged, or if
            the state's leaves are not those of `abstract_state`; lists every one that differs.
        """
        self._join()
        wanted = arrays.describe(arrays.flatten(abstract_state))
        chosen = self._agree(step)
        if chosen is None:
            return None
        folder = self._folder.at(chosen)
        stored = json.loads((folder / LEAVES).read_text())
        if found := arrays.mismatches(stored, wanted):
            raise CheckpointError(
                f"{folder}: holds another state than this run's: {'; '.join(found)}; undo the change of configuration, "
                "or begin in another folder"
            )
        try:
            state = arrays.read(folder / ARRAYS, abstract_state)
        except Exception as error:  # the files are as they were written, so they are not at fault
            raise CheckpointError(f"{folder}: intact, but cannot be read: {_first_line(error)}") from error
        self._at = chosen
        return Restored(chosen, state, json.loads((folder / RECORD).read_text()))

    def _run_job(self, job: _Job) -> None:
        """Writes a checkpoint. Whatever fails on one process, all go through all phases, and all learn of it."""
        error: Exception | None = None
        try:
            barrier = ocp.multihost.get_barrier_sync_fn()  # by the coordinator, not the devices: those are training
            for phase in (self._prepare, self._write, self._commit, self._confirm):
                error = error or _attempt(phase, job)
                barrier(key=f"{self._run}-{self._saves}-{phase.__name__}", timeout_ms=_BARRIER_MILLISECONDS)
        except Exception as reason:  # a process is gone
            error = error or reason
        finally:
            job.copied.set()
        if error is None:
            self._at, self.failures_in_a_row, self._row = job.step, 0, []
            if self._main:
                self._folder.prune(self._keep, self._keep_every)
            return
        failure = CheckpointFailure(job.step, _first_line(error))
        log.error("%s: %s", self.folder, failure)
        self._row.append(failure)
        self._unreported.append(failure)
        self.failures_in_a_row += 1
        if self._main:
            self._folder.sweep(tries=_SWEEPS)

    def _prepare(self, job: _Job) -> None:
        if self._main:
            self._folder.begin(job.step)

    def _write(self, job: _Job) -> None:
        if not job.working.is_dir():
            raise FileNotFoundError(f"{job.working} is not there; all processes need the same folder")
        arrays.write(job.working / ARRAYS, job.leaves, job.copied.set)
        job.leaves = {}  # frees the copy
        (job.working / _written(jax.process_index())).write_text("")

    def _commit(self, job: _Job) -> None:
        """Makes a checkpoint of what all processes have written."""
        if not self._main:
            return
        for process in range(jax.process_count()):
            mark = job.working / _written(process)
            if not mark.exists():
                raise RuntimeError(f"process {process} could not write its part; its own log says why")
            mark.unlink()
        arrays.finish(job.working / ARRAYS)
        (job.working / LEAVES).write_text(json.dumps(job.described, indent=1) + "\n")
        (job.working / RECORD).write_text(job.record)
        self._folder.commit(job.step)

    def _confirm(self, job: _Job) -> None:
        if not (self._folder.at(job.step) / manifest.MANIFEST).exists():
            raise RuntimeError("process 0 could not complete it; its log says why")

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _raise_if_too_many(self) -> None:
        if self.failures_in_a_row >= self._max_failures:
            steps = ", ".join(str(failure.step) for failure in self._row)
            raise CheckpointError(
                f"{self.folder}: {self.failures_in_a_row} failures in a row: the checkpoints of steps {steps} could "
                f"not be written, the last one because of {self._row[-1].message}{self._where_things_stand()}"
            )

    def _where_things_stand(self) -> str:
        latest = self._folder.latest()
        good = "there is no earlier one" if latest is None else f"the last good one is of step {latest}"
        return f"; {good}; make room or mend the folder, and the same command goes on from there"

    def _agree(self, step: int | None) -> int | None:
        """The step to restore, which process 0 chooses for all; see `CheckpointFolder.choose`."""
        error, chosen = None, step
        if self._main:
            try:
                if step is None:
                    chosen = self._folder.choose()
                else:
                    self._folder.check(step)
            except CheckpointError as reason:
                error = reason
        code = _from_main(_FAILED if error is not None else _NONE if chosen is None else chosen)
        if error is not None:
            raise error
        if code == _FAILED:
            raise CheckpointError(f"{self.folder}: process 0 found nothing to restore; its log says why")
        return None if code == _NONE else code


def _attempt(phase: Callable[[_Job], None], job: _Job) -> Exception | None:
    try:
        phase(job)
    except Exception as error:  # of many kinds, from Orbax and TensorStore
        return error
    return None


def _from_main(number: int) -> int:
    """Process 0's number, on all processes."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _written(process: int) -> str:
    return f"written.{process}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    if code := re.search(r"os_error_code='([0-9]+)'", str(error)):  # TensorStore's; it hides at the end of a long line
        return f"{os.strerror(int(code[1]))} ({type(error).__name__}: {lines[0]})"
    return f"{type(error).__name__}: {lines[0]}"
