"""Intervals of means: of shares, where the bootstrap knows nothing, and of means over groups."""

import numpy as np
import pytest

from uae_jax.bench.intervals import mean_interval, mean_share_interval, proportion_interval, stratified_interval


@pytest.mark.parametrize(
    ("hits", "count", "wanted"),
    [
        # z^2 / (n + z^2) with z^2 = 3.8415, for none; one less that, for all.
        (0, 20, (0.0, 0.1611)),
        (20, 20, (0.8389, 1.0)),
        # 0.5 +- z sqrt(n / 4 + z^2 / 4) / (n + z^2) = 0.5 +- 1.96 x 2.4416 / 23.84.
        (10, 20, (0.2993, 0.7007)),
    ],
)
def test_a_share_of_few(hits, count, wanted):
    assert proportion_interval(hits, count) == pytest.approx(wanted, abs=1e-4)


def test_a_mean_of_shares():
    # Of one, its own. Of 1 of 1 (0.2065 to 1) and 0 of 1 (0 to 0.7935): half of 0.7935 to either side of 1/2.
    assert mean_share_interval([(10, 20)]) == pytest.approx(proportion_interval(10, 20))
    assert mean_share_interval([(1, 1), (0, 1)]) == pytest.approx((0.1033, 0.8967), abs=1e-4)


def test_a_mean_over_groups_leaves_each_group_its_size():
    # The large group would drown the small one in a plain mean: 0.99.
    values, few = np.ones(99), [0.0]
    assert stratified_interval([values, few]) == (0.5, 0.5)
    assert mean_interval(np.append(values, few))[0] > 0.9


def test_weights_count():
    # Of 20 drawn, 95% of times from 6 to 14 are ones: 6 x 3 / (6 x 3 + 14) to 14 x 3 / (14 x 3 + 6). Unweighted, 0.3
    # to 0.7.
    found = stratified_interval([[0.0] * 10 + [1.0] * 10], [[1.0] * 10 + [3.0] * 10])
    assert found == pytest.approx((0.5625, 0.875))


def test_large_samples_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(1).normal(size=50)
    whole = mean_interval(values, draws=100)
    monkeypatch.setattr("uae_jax.bench.intervals._AT_ONCE", 120)
    assert mean_interval(values, draws=100) == whole
