"""Advantages of groups, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rl.advantages import AdvantageConfig, group_advantages

EXACT = {"epsilon": 0.0, "floor": 0.0, "clamp": 0.0}


def advantages(rewards, **config):
    return np.asarray(group_advantages(jnp.asarray(rewards, jnp.float32), AdvantageConfig(**(EXACT | config)))[0])


def test_rewards_are_standardised_within_their_group():
    # Rewards 1, 2, 3: mean 2, population deviation 0.8165. Bessel's would be 1, and so the advantages -1, 0, 1.
    np.testing.assert_allclose(advantages([[1, 2, 3]]), [[-1.2247, 0, 1.2247]], atol=1e-4)
    np.testing.assert_allclose(advantages([[1, 2, 3]], bessel=True), [[-1, 0, 1]], atol=1e-6)


def test_a_batch_deviation_is_that_of_all_rewards():
    # Flow-GRPO: deviation of 0, 2, 10, 12 about their common mean 6 is sqrt((36 + 16 + 16 + 36) / 4) = 5.099;
    # about each group's own mean it would be 1.
    got = advantages([[0, 2], [10, 12]], std="batch")
    np.testing.assert_allclose(got, np.array([[-1, 1], [-1, 1]]) / 5.0990, rtol=1e-4)
    np.testing.assert_allclose(advantages([[0, 2], [10, 12]], std="none"), [[-1, 1], [-1, 1]])


@pytest.mark.parametrize("std", ["group", "batch", "none"])
def test_every_group_sums_to_nothing(std):  # oracle 8
    rewards = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_allclose(advantages(rewards, std=std).sum(axis=1), 0, atol=1e-5)


def test_the_largest_advantage_is_that_of_one_against_all():
    # Oracle 8: one member at 1 and G - 1 at 0 gives sqrt(G - 1) by the population's deviation, (G - 1) / sqrt(G) by
    # Bessel's.
    one = [[1.0] + [0.0] * 7]
    assert advantages(one).max() == pytest.approx(np.sqrt(7), rel=1e-5)
    assert advantages(one, bessel=True).max() == pytest.approx(7 / np.sqrt(8), rel=1e-5)


def test_a_common_shift_and_scale_of_rewards_change_nothing():  # oracle 8
    rewards = np.random.default_rng(1).normal(size=(3, 4))
    np.testing.assert_allclose(advantages(3 * rewards + 7), advantages(rewards), atol=1e-5)


def test_equal_rewards_teach_nothing():  # oracle 8: finite, though the deviation is 0
    got, metrics = group_advantages(jnp.array([[0.5, 0.5], [0.0, 1.0]]), AdvantageConfig())
    np.testing.assert_array_equal(got[0], 0)
    assert metrics["zero_variance_groups"] == 0.5 and np.isfinite(got).all()


def test_groups_without_spread_are_counted_without_a_floor_too():
    # What float32 makes of equal cosines differs in the last place.
    rewards = jnp.array([[0.8, 0.8, 0.80000007], [0.8, 0.801, 0.8]])
    _, metrics = group_advantages(rewards, AdvantageConfig(std="batch", floor=0.0))
    assert metrics["zero_variance_groups"] == 0.5


def test_groups_below_the_floor_are_dropped_and_others_are_not():
    # Deviations 0.0005 and 0.002; without the floor the first would count as much as the second.
    rewards = jnp.array([[0.8, 0.801], [0.8, 0.804]])
    got, metrics = group_advantages(rewards, AdvantageConfig(floor=1e-3, epsilon=0.0))
    np.testing.assert_array_equal(got[0], 0)
    np.testing.assert_allclose(got[1], [-1, 1], rtol=1e-3)
    assert metrics["zero_variance_groups"] == 0.5


def test_advantages_are_clamped_and_carry_no_gradient():
    assert advantages([[1.0] + [0.0] * 63], clamp=5.0).max() == 5.0  # sqrt(63) = 7.9 before
    gradient = jax.grad(lambda r: (group_advantages(r)[0] * jnp.arange(3.0)).sum())(jnp.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_array_equal(gradient, 0)


def test_metrics_are_of_the_rewards():
    _, metrics = group_advantages(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    assert metrics["reward"] == 3.5 and metrics["reward_std"] == 0.5  # deviations 1 and 0


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="groups have 1 member, wanted at least 2"):
        group_advantages(jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="std is 'all', wanted 'group', 'batch' or 'none'"):
        AdvantageConfig(std="all")
    with pytest.raises(ValueError, match="wanted none of them below 0"):
        AdvantageConfig(floor=-1.0)
