"""Batches of samples, in an order that a few numbers describe, so that a run goes on exactly where it stopped."""

import dataclasses
import logging
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

from uae_jax.data.config import DataConfig
from uae_jax.data.order import Dealt, Order
from uae_jax.data.reading import Read, Reader, read_in_order
from uae_jax.data.records import Sample, Source
from uae_jax.data.sources import open_source
from uae_jax.data.validity import Tally, TooManyBadRecords

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class SampleBatch:
    """Samples whose images have one shape.

    Attributes:
      samples: this process's part of the batch.
      state: of the loader after this batch, JSON-able; see `Loader.set_state`.
    """

    samples: list[Sample]
    state: dict[str, Any]


class Loader(Iterator[SampleBatch]):
    """Records of several sources -> batches of samples.

    Reads this process's rows of each batch in order, skips and counts what is bad, and sorts samples by the shape of
    their images until one shape has a batch. A batch and all that follow depend on the settings and on `state` only,
    not on the number of worker processes. Close it, or use it in a `with`, to end those.

    Attributes:
      batch_size: samples of all processes together.
      rows: which of each batch's rows come from here.
      records: of all sources.
      tally: what has come of those that were read here.
    """

    def __init__(
        self,
        config: DataConfig,
        batch_size: int,
        seed: int,
        *,
        rows: Sequence[int] | None = None,
        epochs: int | None = None,
        keep_rest: bool = False,
        sources: Sequence[Source] | None = None,
    ):
        """Opens the sources; reads no record yet.

        Args:
          config: which data, and what becomes of it.
          batch_size: samples of all processes together.
          seed: of the order, of which caption is drawn, and of random crops.
          rows: which of each batch's rows this process reads, rising; None for all. What the rows of a batch are does
            not depend on how many processes read them, as long as no record is bad.
          epochs: times through the data; None never ends. See `Order`.
          keep_rest: whether what does not fill a batch at the end comes as smaller batches; else it is dropped.
          sources: already opened, one for each of `config.sources`.

        Raises:
          ValueError: if settings do not go together, or a source is empty.
        """
        rows = list(range(batch_size) if rows is None else map(int, rows))
        if not rows or rows != sorted(set(rows)) or rows[0] < 0 or rows[-1] >= batch_size:
            raise ValueError(f"rows are {rows}, wanted some of 0 to {batch_size - 1}, rising")
        if config.workers < 0 or config.buffer < 1:
            raise ValueError(f"workers is {config.workers} and buffer {config.buffer}, wanted at least 0 and 1")
        sources = open_sources(config) if sources is None else list(sources)
        if config.sources and len(config.sources) != len(sources):
            raise ValueError(f"{len(sources)} sources were given for {len(config.sources)} in the settings")
        weights = [source.weight for source in config.sources] or [1.0] * len(sources)
        order = Order([len(source) for source in sources], weights, seed, shuffle=config.shuffle, epochs=epochs)
        self._reader = Reader(config, sources, order, seed)
        if len(self._reader.shapes) > 1 and len(rows) < batch_size:
            raise ValueError(
                f"{len(self._reader.shapes)} shapes of images on several processes: they would not agree on the next "
                f"batch's shape; give a single one in aspects"
            )
        self.config = config
        self.records = sum(order.settings["sizes"])
        self.tally = Tally()
        self.rows, self.batch_size = rows, batch_size
        self._keep_rest = keep_rest
        self._closed = False
        self._reading = threading.Lock()
        self._reads: Generator[Read] | None = None
        self._go_to(0)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def __next__(self) -> SampleBatch:
        """The next batch.

        Raises:
          StopIteration: after the last epoch, or when closed.
          TooManyBadRecords: if more than `config.max_bad_fraction` are bad, or nothing but bad records is left.
        """
        while not self._closed:
            with self._reading:
                read = next(self._reads, None)
            if read is None:
                return self._rest()
            self._consumed += 1
            if read.sample is None:
                self._skip(read)
                continue
            self._bad_in_a_row = 0
            self.tally.use(read.id, read.conversions)
            pending = self._pending[read.bucket]
            pending.append(read)
            if len(pending) == len(self.rows):
                return self._batch(read.bucket)
        self.close()
        raise StopIteration

    def _batch(self, bucket: int) -> SampleBatch:
        reads, self._pending[bucket] = self._pending[bucket], []
        return SampleBatch([read.sample for read in reads], self.get_state())

    def _rest(self) -> SampleBatch:
        for bucket, reads in enumerate(self._pending):
            if reads and self._keep_rest:
                return self._batch(bucket)
        raise StopIteration

    def _skip(self, read: Read) -> None:
        if self.tally.skip(read.id, read.kind):  # once, and not in every epoch
            log.warning("record skipped (%s): %s: %s", read.kind, read.id, read.message)
        self.tally.check(self.config.max_bad_fraction)
        self._bad_in_a_row += 1
        if self._bad_in_a_row > self.records:  # would go round forever
            raise TooManyBadRecords(
                f"the last {self._bad_in_a_row} records were all bad, and there are no more than {self.records}\n"
                f"{self.tally.table()}"
            )

    def get_state(self) -> dict[str, Any]:
        """Where the loader stands: numbers and counts, no images. JSON-able."""
        return {
            "order": self._reader.order.settings,
            "rows": None if len(self.rows) == self.batch_size else self.rows,
            "consumed": self._consumed,
            "pending": [read.position for reads in self._pending for read in reads],
            "tally": self.tally.to_json(),
        }

    def set_state(self, *states: Mapping[str, Any]) -> None:
        """Goes on after the batch whose state this is, as if nothing had happened in between.

        What had been read but not been given out is read again. Where batches were dealt to processes in another way,
        all go on with the first batch of which no process has read anything, which is the next one if no record was
        bad.

        Args:
          *states: of all processes' loaders, in any order; one is enough where there was one.

        Raises:
          ValueError: if the state belongs to other data, or another order of it.
        """
        settings = self._reader.order.settings
        changed = [key for key in settings if any(state["order"].get(key) != settings[key] for state in states)]
        if changed:
            got = ", ".join(f"{key} {settings[key]}" for key in changed)
            wanted = ", ".join(f"{key} {states[0]['order'].get(key)}" for key in changed)
            raise ValueError(
                f"the data has {got}, wanted {wanted} as when the run stopped; put the data and its settings back, or "
                f"start a new run"
            )
        dealt = [state.get("rows") or list(range(self.batch_size)) for state in states]
        own = next((state for state, rows in zip(states, dealt, strict=True) if rows == self.rows), None)
        if own is not None:
            self._go_to(own["consumed"], own["pending"])
            self.tally = Tally.from_json(own["tally"])
            return
        log.warning("batches are split over processes in another way than before: records are dealt anew")
        begun = max(-(-state["consumed"] // len(rows)) for state, rows in zip(states, dealt, strict=True))
        self._go_to(begun * len(self.rows))
        self.tally = Tally()
        if 0 in self.rows:  # one of them counts on for all
            for state in {tuple(rows): state for state, rows in zip(states, dealt, strict=True)}.values():
                self.tally.merge(Tally.from_json(state["tally"]))

    def _go_to(self, consumed: int, pending: Sequence[int] = ()) -> None:
        """Makes `consumed` the number of records that this process has read, some of which wait for their batch."""
        if self._reads is not None:
            self._reads.close()
        self._consumed = consumed
        self._bad_in_a_row = 0
        self._pending: list[list[Read]] = [[] for _ in self._reader.shapes or [()]]
        for read in map(self._reader, pending):
            if read.sample is None:
                log.warning("record could be read before, and now cannot: %s: %s", read.id, read.message)
            else:
                self._pending[read.bucket].append(read)
        dealt = Dealt(len(self._reader.order), self.rows, self.batch_size)
        self._reads = read_in_order(self._reader, dealt, consumed, self.config.workers, self.config.buffer)

    def close(self) -> None:
        """Ends worker processes. May be called from another thread than the one that reads.

        That one then ends at the record it is at; what it leaves open, another call closes.
        """
        self._closed = True
        # A generator must not be closed while another thread runs it: Python 3.11 may crash, with no exception.
        if self._reading.acquire(blocking=False):
            try:
                self._reads.close()
            finally:
                self._reading.release()


def open_sources(config: DataConfig) -> list[Source]:
    """Opens each of the settings' sources.

    Raises:
      ValueError: if there is none, or one cannot be opened.
    """
    if not config.sources:
        raise ValueError("data.sources is empty, wanted at least one source")
    return [open_source(source) for source in config.sources]
