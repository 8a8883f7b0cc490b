"""Working in parts changes nothing but memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.stages.micro import in_parts


@pytest.mark.parametrize("size, parts", [(0, 1), (1, 12), (4, 3), (5, 3), (7, 2), (12, 1), (99, 1)])
def test_parts_give_what_the_whole_gives_in_its_order(size, parts):
    # 12 rows, at most 5 at a time: 3 parts of 4, the fewest that divide 12.
    rows = {"a": jnp.arange(12.0), "b": jnp.arange(24.0).reshape(12, 2)}
    sizes = []

    def double(some):
        sizes.append(len(some["a"]))
        return jax.tree.map(lambda x: 2 * x, some)

    got = in_parts(double, rows, size)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), got, rows)
    assert sizes[0] == 12 // parts


def test_only_a_part_is_computed_at_a_time():
    text = str(jax.make_jaxpr(lambda x: in_parts(lambda y: jnp.outer(y, y).sum(1), x, 4))(jnp.zeros(16)))
    assert "f32[4,4]" in text and "f32[16,16]" not in text
