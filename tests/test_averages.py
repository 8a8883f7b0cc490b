"""What parts of a batch have different numbers of is averaged over all of them, not over the parts' averages."""

import jax
import jax.numpy as jnp
import pytest

from uae_jax.averages import Mean, divided

VALUES = jnp.array([1.0, 2.0, 6.0, jnp.nan])
WHERE = jnp.array([1, 1, 1, 0], bool)


def test_the_mean_of_parts_is_that_of_the_whole():
    parts = [Mean.of(VALUES[:2], WHERE[:2]), Mean.of(VALUES[2:], WHERE[2:])]
    averaged = jax.tree.map(lambda *x: jnp.stack(x).mean(0), *parts)
    assert float(averaged.value) == float(Mean.of(VALUES, WHERE).value) == 3.0
    assert float(sum(part.value for part in parts) / 2) == 3.75  # which would have been wrong


@pytest.mark.parametrize("otherwise", [0.0, 1.0])
def test_nothing_to_average_is_what_was_said(otherwise):
    assert float(Mean.of(VALUES, jnp.zeros(4), otherwise).value) == otherwise


def test_weights_count():
    assert float(Mean.of(VALUES, jnp.array([1.0, 0.5, 0.0, 0.0])).value) == pytest.approx(2 / 1.5)


def test_other_metrics_stay_what_they_are():
    plain = jnp.float32(7)
    assert divided({"a": plain, "b": Mean.of(VALUES, WHERE)}) == {"a": plain, "b": 3.0}
