"""Means over what a part of a batch may have more of than another: tokens of captions, say.

The mean of the parts' means is not the mean of all. So parts hand on sums and counts, and whoever has averaged these
over all parts divides.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import struct

Array = jax.Array


@struct.dataclass
class Mean:
    """A mean that is not divided yet. Averages of both fields over parts are that of all parts together.

    Attributes:
      total: f32[], the sum of the values that count.
      count: f32[], how many they are.
      otherwise: what it is where there are none.
    """

    total: Array
    count: Array
    otherwise: float = struct.field(pytree_node=False, default=0.0)

    @classmethod
    def of(cls, values: Array, where: Array, otherwise: float = 0.0) -> "Mean":
        """Of values, bool or float, weighted by `where` of the same shape, bool or float."""
        weight = jnp.asarray(where).astype(jnp.float32)
        there = jnp.where(weight != 0, values.astype(jnp.float32), 0.0)  # what does not count may be no number
        return cls((there * weight).sum(), weight.sum(), otherwise)

    @property
    def value(self) -> Array:
        """f32[]."""
        some = self.count > 0
        return jnp.where(some, self.total / jnp.where(some, self.count, 1.0), self.otherwise)


def divided(metrics: Mapping[str, Array | Mean]) -> dict[str, Array]:
    """Metrics as they are logged: name -> f32[]."""
    return {name: value.value if isinstance(value, Mean) else value for name, value in metrics.items()}
