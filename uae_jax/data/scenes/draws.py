"""Random choices, cheap enough for hundreds per sample."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The generator of one sample; (seed, index), both in [0, 2⁶⁴), decide all that is drawn from it."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


class Draws:
    """Uniform numbers taken from a generator by the hundred: single calls would cost more than what they decide."""

    def __init__(self, rng: np.random.Generator):
        self._rng, self._pool = rng, []

    def uniform(self) -> float:
        """A number in [0, 1)."""
        if not self._pool:
            self._pool = self._rng.random(96).tolist()
        return self._pool.pop()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.uniform()

    def choice(self, items: Sequence[Any]) -> Any:
        """One of the items, each as likely."""
        return items[int(self.uniform() * len(items))]

    def weighted(self, cumulated: Sequence[float]) -> int:
        """An index, by cumulated weights that end in 1."""
        u = self.uniform()
        return next(i for i, bound in enumerate(cumulated) if u < bound)

    def shuffled(self, items: Sequence[Any]) -> list:
        """The items in random order."""
        return [items[i] for _, i in sorted((self.uniform(), i) for i in range(len(items)))]
