"""Which record stands at which position of an endless stream: mixture, shuffling, epochs.

Everything follows from the settings and the position alone, so that a stream can go on anywhere.
"""

import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np


class Order:
    """Position -> (source, index in the source).

    Sources take turns in proportion to their weights. Each is gone through as a whole before it starts again, in a new
    order each time where they are shuffled.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], seed: int, *, shuffle: bool, epochs: int | None = None
    ):
        """Lays the sources out; takes no memory that grows with them.

        Args:
          sizes: records of each source.
          weights: how often each has its turn, relative to the others.
          seed: of the shuffling.
          shuffle: False keeps the order of the sources.
          epochs: times that each source is gone through; None repeats forever. Of several sources, the stream ends
            where the first of them has nothing left.

        Raises:
          ValueError: if there is no source, or one that is empty, or without weight.
        """
        if not sizes or len(sizes) != len(weights):
            raise ValueError(f"{len(sizes)} sources with {len(weights)} weights, wanted at least one, a weight each")
        for i, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            if size < 1:
                raise ValueError(f"source {i} holds no records; leave it out, or look at its path")
            if not weight > 0:
                raise ValueError(f"source {i} has weight {weight}, wanted more than 0; leave it out instead")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs is {epochs}, wanted at least 1, or None for no end")
        self.settings = {
            "sizes": [int(size) for size in sizes],
            "weights": [float(weight) for weight in weights],
            "seed": int(seed),
            "shuffle": bool(shuffle),
        }
        turns = []
        for i, size in enumerate(sizes):
            indices = grain.MapDataset.range(size)
            if shuffle:  # grain adds the epoch to the seed: seeds of sources and runs must not be neighbours
                indices = indices.shuffle(seed=int(np.random.SeedSequence((seed, i)).generate_state(1)[0]))
            turns.append(indices.repeat(epochs).map(_Named(i)))
        self._stream = turns[0] if len(turns) == 1 else grain.MapDataset.mix(turns, list(weights))

    def __len__(self) -> int:
        return min(len(self._stream), sys.maxsize)

    def __getitem__(self, position: int) -> tuple[int, int]:
        return self._stream[position]


class Dealt(Sequence):
    """The positions of a stream that one reader of some rows of each batch reads: its n-th is at index n."""

    def __init__(self, length: int, rows: Sequence[int], batch_size: int):
        """Deals a stream out.

        Args:
          length: of the stream.
          rows: of each batch, rising.
          batch_size: rows of all readers together.
        """
        self._rows, self._batch_size = tuple(rows), batch_size
        whole, rest = divmod(length, batch_size)
        self._length = min(whole * len(self._rows) + sum(row < rest for row in self._rows), sys.maxsize)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> int:
        batch, place = divmod(index, len(self._rows))
        return batch * self._batch_size + self._rows[place]


class _Named:
    """Puts the source's number before an index."""

    def __init__(self, source: int):
        self.source = source

    def __call__(self, index: Any) -> tuple[int, int]:
        return self.source, int(index)
