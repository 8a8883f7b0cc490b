"""Batches on the devices before the step asks for them."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from uae_jax.data.loader import Loader
from uae_jax.data.records import Sample
from uae_jax.parallel import global_arrays

Tree = Any


@dataclasses.dataclass(frozen=True)
class Fed:
    """A batch, ready for a step.

    Attributes:
      batch: what the stage's `collate` made, on the mesh, rows split over its batch axes.
      ids: of this process's samples, row by row.
      rows: which of the batch's rows those are.
      state: the loader's after this batch.
      samples: this process's, where they are kept.
    """

    batch: Tree
    ids: list[str]
    rows: Sequence[int]
    state: dict[str, Any]
    samples: list[Sample] = dataclasses.field(default_factory=list)


class Feed(Iterator[Fed]):
    """Reads, collates and places batches in a thread of its own, some ahead of who takes them.

    What goes wrong in the thread is raised where the batch would have come out. Close it to end the thread and the
    loader's processes.
    """

    def __init__(
        self,
        loader: Loader,
        collate: Callable[[Sequence[Sample]], Tree],
        mesh: Mesh,
        depth: int = 2,
        keep_samples: bool = False,
    ):
        """Starts reading.

        Args:
          loader: of which this becomes the only reader, and which it closes.
          collate: samples -> tree of arrays, rows first.
          mesh: where batches go.
          depth: batches that wait ready, on the devices, at most.
          keep_samples: whether `Fed.samples` holds them.
        """
        if depth < 1:
            raise ValueError(f"depth is {depth}, wanted at least 1")
        self.waited_s = 0.0
        self._since, self._waited_before = time.perf_counter(), 0.0
        self._loader, self._collate, self._mesh, self._keep_samples = loader, collate, mesh, keep_samples
        self._ready: queue.Queue[Fed | BaseException] = queue.Queue(depth)
        self._stopping = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __next__(self) -> Fed:
        """The next batch; waits for it, and counts the seconds in `waited_s`.

        Raises:
          StopIteration: after the loader's last batch, and after `close`.
          Exception: whatever the thread ran into, with its traceback; again at each further call.
        """
        if self._ended is None:
            start = time.perf_counter()
            item = self._ready.get()
            self.waited_s += time.perf_counter() - start
            if isinstance(item, Fed):
                return item
            self._ended = item
        raise self._ended

    def waited_fraction(self) -> float:
        """Share of the time since the last call of this that `next` has waited: near 0 where data is no limit."""
        now = time.perf_counter()
        share = (self.waited_s - self._waited_before) / max(now - self._since, 1e-9)
        self._since, self._waited_before = now, self.waited_s
        return share

    def close(self) -> None:
        """Ends the thread, at the record or batch it is at, and the loader. Ready batches are dropped."""
        self._stopping.set()
        self._loader.close()
        while self._thread.is_alive():
            self._drop_ready()  # makes room, should the thread be waiting for it
            self._thread.join(0.02)
        self._loader.close()  # again, now that nobody reads from it
        self._drop_ready()
        self._ended = self._ended or StopIteration()

    def _drop_ready(self) -> None:
        while not self._ready.empty():
            self._ready.get_nowait()

    def _run(self) -> None:
        rows = self._loader.rows
        try:
            for batch in self._loader:
                placed = place_batch(self._collate(batch.samples), rows, self._loader.batch_size, self._mesh)
                ids = [sample.id for sample in batch.samples]
                if self._stopping.is_set():
                    return
                self._ready.put(Fed(placed, ids, rows, batch.state, batch.samples if self._keep_samples else []))
            self._ready.put(StopIteration())
        except BaseException as error:
            self._ready.put(error)


def place_batch(batch: Tree, rows: Sequence[int], count: int, mesh: Mesh) -> Tree:
    """Puts a batch on the mesh, rows split over the axes of "batch".

    Args:
      batch: tree of host arrays [len(rows), ...], this process's part.
      rows: which of the whole batch's rows those are.
      count: rows of the whole batch.
      mesh: of all processes.

    Returns:
      The tree, of global arrays [count, ...].

    Raises:
      ValueError: if an array has another number of rows.
    """

    def place(path: Any, leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        if leaf.ndim < 1 or leaf.shape[0] != len(rows):
            raise ValueError(f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}, wanted {len(rows)} rows first")
        return global_arrays.put_rows(leaf, rows, count, mesh)

    return jax.tree_util.tree_map_with_path(place, batch)
