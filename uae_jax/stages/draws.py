"""Randomness with a row for each sample, so that what a sample draws depends on no other one of its batch.

A loss that draws from these draws the same however its batch is split, into micro-batches or over devices.
"""

import jax

Array = jax.Array


def of_rows(key: Array, count: int) -> Array:
    """u32[count, 2]: the words of a key for each row, which any batch can carry."""
    return jax.random.key_data(jax.random.split(key, count))


def keys(rows: Array, count: int) -> Array:
    """u32[B, 2] -> key[count, B]: so many independent keys of each row."""
    split = jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)
    return split(jax.random.wrap_key_data(rows))
