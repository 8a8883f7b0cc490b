"""From a position in the stream to a sample: read, check, draw a caption, decode, bring to shape.

What comes out depends on settings, seed and position only, whichever process reads it.
"""

import bisect
import dataclasses
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from uae_jax.data import transforms
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.images import check_size, open_image
from uae_jax.data.order import Order
from uae_jax.data.records import Record, Sample, Source
from uae_jax.data.validity import BAD_RECORD, CaptionError, RecordError, alternatives, usable_caption


@dataclasses.dataclass(frozen=True)
class Read:
    """What became of the record at one position.

    Attributes:
      position: in the stream of all processes.
      id: of the record.
      sample: None if the record is bad.
      bucket: which of the shapes the sample's image has.
      kind: what is wrong with a bad record, in one word.
      message: the same in one line.
      conversions: what had to be converted in a good one.
    """

    position: int
    id: str
    sample: Sample | None = None
    bucket: int = 0
    kind: str = ""
    message: str = ""
    conversions: tuple[str, ...] = ()


class Reader:
    """Position -> `Read`. Picklable; worker processes hold one each."""

    def __init__(self, config: DataConfig, sources: Sequence[Source], order: Order, seed: int):
        """Keeps what it is given; reads nothing yet.

        Raises:
          ValueError: if captions' weights do not fit their fields, or the settings of buckets make no sense.
        """
        self.config = config
        self.sources = list(sources)
        self.order = order
        self.seed = seed
        self.shapes: tuple[transforms.Shape, ...] = ()
        if config.resolution:
            self.shapes = transforms.bucket_shapes(config.resolution, config.aspects, config.multiple_of)
        self.settings = list(config.sources) or [SourceConfig()] * len(self.sources)
        for settings in self.settings:
            check_caption_weights(settings)

    def __call__(self, position: int) -> Read:
        """Reads one record. Whatever is wrong with the record itself is told, not raised."""
        number, index = self.order[position]
        source = self.sources[number]
        id = ""
        conversions: list[str] = []
        try:
            record = source[index]
            id = record.id
            rng = np.random.default_rng((self.seed, position))
            field, caption = None, None
            if self.config.with_captions:
                field, caption = draw_caption(record.captions, self.settings[number], rng)
            image, bucket = self._image(record, rng, conversions) if self.shapes else (None, 0)
        except BAD_RECORD as error:
            return Read(position, id or source.id(index), kind=error.kind, message=str(error))
        except Exception as error:
            error.add_note(f"while reading record {index} of {source.name}")
            raise
        sample = Sample(id, image, caption, field, record.arrays)
        return Read(position, id, sample, bucket, conversions=tuple(conversions))

    def _image(self, record: Record, rng: np.random.Generator, conversions: list[str]) -> tuple[np.ndarray, int]:
        """Decodes -> (u8[H, W, 3], its bucket)."""
        if record.image is None:
            raise RecordError("missing", "no image")
        if self._is_ready(record.image):
            check_size(record.image.shape[1::-1], self.config.limits, "array")
            pixels, bucket = record.image, 0
        else:
            image = open_image(record.image, self.config.limits, note=conversions.append)
            bucket = transforms.nearest_bucket(image.size, self.shapes)
            pixels = transforms.resize_and_crop(image, self.shapes[bucket], self.config.crop, rng)
        if self.config.flip and rng.random() < self.config.flip:
            pixels = transforms.mirror(pixels)
        return pixels, bucket

    def _is_ready(self, image: Any) -> bool:
        """Whether there is nothing to do: the way over Pillow would take a tenth of the time of painting a scene."""
        one = len(self.shapes) == 1
        return one and isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (*self.shapes[0], 3)


def check_caption_weights(settings: SourceConfig) -> None:
    """Raises `ValueError` where a source's caption weights do not go with its caption fields."""
    weights, fields = settings.caption_weights, settings.captions
    if weights and (len(weights) != len(fields) or min(weights) < 0 or sum(weights) <= 0):
        raise ValueError(
            f"caption_weights are {weights} for the captions {fields}, wanted a number of at least 0 for each field, "
            f"not all 0; or () to draw all fields alike"
        )


def draw_caption(captions: Mapping[str, Any], settings: SourceConfig, rng: np.random.Generator) -> tuple[str, str]:
    """Draws a field by the settings' weights, then one of its captions; what is not usable is drawn again without it.

    Args:
      captions: field -> one caption or several, as stored.
      settings: which fields, and their weights.
      rng: decides.

    Returns:
      (field, caption).

    Raises:
      CaptionError: if no caption of any of the fields is usable; it is the first one's that was drawn.
    """
    fields = list(settings.captions or captions)
    first_error: CaptionError | None = None
    for field in _drawn(fields, settings.caption_weights or (1.0,) * len(fields), rng):
        values = alternatives(captions.get(field))
        for value in _drawn(values, (1.0,) * len(values), rng):
            try:
                return field, usable_caption(value)
            except CaptionError as error:
                first_error = first_error or error
    raise first_error or CaptionError("missing", "no caption")


def _drawn(items: Sequence[Any], weights: Sequence[float], rng: np.random.Generator) -> Iterator[Any]:
    """The items in random order, the next always drawn by the weights of those that are left; none of weight 0.

    Looks at no item before its turn: a source may make them only then.
    """
    left = [i for i, weight in enumerate(weights) if weight > 0]
    while len(left) > 1:
        sums = list(itertools.accumulate(weights[i] for i in left))
        at = min(bisect.bisect_right(sums, rng.random() * sums[-1]), len(left) - 1)
        yield items[left.pop(at)]
    yield from (items[i] for i in left)


def read_in_order(reader: Reader, positions: Sequence[int], first: int, workers: int, buffer: int) -> Generator[Read]:
    """Reads positions one after another; close the iterator to end its processes.

    Args:
      reader: of records.
      positions: to read, in this order, however many workers there are.
      first: index of the first of `positions` that is read.
      workers: processes; 0 reads in this one, when the next is asked for.
      buffer: records that the processes together may be ahead.
    """
    if workers == 0:
        for index in range(first, len(positions)):
            yield reader(positions[index])
        return
    if not flags.FLAGS.is_parsed():  # grain's workers read flags that this program may not have
        flags.FLAGS.mark_as_parsed()
    stream = grain.MapDataset.range(first, len(positions)).map(positions.__getitem__).map(reader)
    iterator = iter(
        stream.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=max(buffer // workers, 1)),
            worker_init_fn=_start_worker,
        )
    )
    try:
        yield from iterator
    finally:
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    """Leaves it to the main process when a worker ends: it may have to save first. A killed one takes it along."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
