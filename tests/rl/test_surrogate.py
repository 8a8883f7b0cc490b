"""The clipped objectives: values and gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.averages import divided
from uae_jax.rl.surrogate import ClipConfig, ratio_metrics, surrogate

PPO = ClipConfig(low=0.2, high=0.28)


def one(ratio, advantage, config=PPO):
    """Loss of a single token at a ratio, and its derivative in the log-probability."""

    def loss(logprob):
        value, _ = surrogate(logprob, jnp.zeros((1, 1)), jnp.array([advantage]), jnp.ones((1, 1)), config)
        return value[0, 0]

    value, gradient = jax.value_and_grad(loss)(jnp.full((1, 1), np.log(ratio), jnp.float32))
    return float(value), float(gradient[0, 0])


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    # Oracle 7: d/dlogp of -r A at r = 1 is -A, whatever the clip.
    for kind in ("ppo", "gspo", "cispo"):
        for advantage in (2.0, -0.5):
            assert one(1.0, advantage, ClipConfig(kind, 0.2, 0.28))[1] == pytest.approx(-advantage, rel=1e-6)


@pytest.mark.parametrize(
    "ratio, advantage, gradient",
    [
        (1.3, 1.0, 0.0),  # good, and likelier by more than 28% already: no more of it
        (1.25, 1.0, -1.25),  # between 1 + low and 1 + high: clip-higher lets it pass
        (0.7, 1.0, -0.7),  # good, yet less likely than it was: pulled back
        (0.7, -1.0, 0.0),  # bad, and less likely by more than 20% already
        (1.3, -1.0, 1.3),  # bad, and likelier
    ],
)
def test_the_clip_cuts_the_gradient_off_on_one_side_only(ratio, advantage, gradient):  # oracle 7
    assert one(ratio, advantage)[1] == pytest.approx(gradient, rel=1e-5, abs=1e-9)


def test_the_value_is_the_pessimistic_one():
    assert one(1.5, 2.0)[0] == pytest.approx(-1.28 * 2)  # not -3
    assert one(0.5, -2.0)[0] == pytest.approx(0.8 * 2)  # not 1
    assert one(1.5, -2.0)[0] == pytest.approx(3.0)  # unclipped: -min(-3, -2.56)


def test_the_dual_clip_bounds_what_the_clip_leaves_open():
    # Oracle 7: A < 0 and r = e^5: the loss would be 148; with c = 3 it is 3, and without a gradient.
    assert one(np.exp(5.0), -1.0)[0] == pytest.approx(np.exp(5.0), rel=1e-5)
    value, gradient = one(np.exp(5.0), -1.0, ClipConfig(dual=3.0))
    assert value == pytest.approx(3.0) and gradient == 0.0
    assert one(2.0, -1.0, ClipConfig(dual=3.0))[0] == pytest.approx(2.0)  # below the bound nothing changes


def test_gspo_takes_the_geometric_mean_of_a_sequence():
    # Log-ratios 0.1, 0.3 and, masked, 9: their mean over two tokens is 0.2; a mean over three would be 3.1.
    logprob, mask = jnp.array([[0.1, 0.3, 9.0]]), jnp.array([[1.0, 1.0, 0.0]])
    config = ClipConfig("gspo", 0.5, 0.5)

    def total(logprob):
        loss, ratio = surrogate(logprob, jnp.zeros((1, 3)), jnp.array([1.0]), mask, config)
        return (loss * mask).sum() / mask.sum(), ratio

    (value, ratio), gradient = jax.value_and_grad(total, has_aux=True)(logprob)
    np.testing.assert_allclose(ratio, np.exp(0.2), rtol=1e-6)
    assert value == pytest.approx(-np.exp(0.2), rel=1e-6)
    np.testing.assert_allclose(gradient, [[-np.exp(0.2) / 2, -np.exp(0.2) / 2, 0.0]], rtol=1e-5)


def test_cispo_weighs_but_never_silences():
    # Ratio 3 is cut to 1 + high = 2 as a weight: the gradient is -2 A, where the clip would make it 0.
    config = ClipConfig("cispo", 0.2, 1.0)
    assert one(3.0, 1.0, config)[1] == pytest.approx(-2.0)
    assert one(0.5, 1.0, config)[1] == pytest.approx(-0.5)


def test_no_gradient_flows_into_the_policy_that_acted():
    def loss(old):
        return surrogate(jnp.zeros((1, 2)), old, jnp.array([1.0]), jnp.ones((1, 2)), PPO)[0].sum()

    np.testing.assert_array_equal(jax.grad(loss)(jnp.full((1, 2), 0.1)), 0)


def test_huge_log_ratios_stay_finite():
    value, gradient = one(1e38, -1.0)
    assert np.isfinite(value) and np.isfinite(gradient)


def test_metrics_count_what_is_cut_off():
    # Four tokens count. 1.5 at A > 0 is cut above; 0.5 at A > 0 is not; 0.5 at A < 0 is cut below; 1 is not.
    ratio = jnp.array([[1.5, 0.5, 7.0], [0.5, 1.0, 0.01]])
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    got = divided(ratio_metrics(ratio, jnp.array([1.0, -1.0]), mask, PPO))
    wanted = {"ratio_min": 0.5, "ratio_mean": 0.875, "ratio_max": 1.5, "clip_high": 0.25, "clip_low": 0.25}
    assert {name: float(value) for name, value in got.items()} == pytest.approx(wanted)


def test_nothing_at_all_is_at_ratio_one():
    got = divided(ratio_metrics(jnp.full((1, 2), 3.0), jnp.ones(1), jnp.zeros((1, 2)), PPO))
    assert [float(got[name]) for name in ("ratio_min", "ratio_mean", "ratio_max", "clip_high")] == [1, 1, 1, 0]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="kind is 'trpo', wanted 'ppo', 'gspo' or 'cispo'"):
        ClipConfig("trpo")
    with pytest.raises(ValueError, match="wanted 0 < low <= 1 and high above 0"):
        ClipConfig(low=0.0)
    with pytest.raises(ValueError, match=r"dual is 0\.5, wanted 0"):
        ClipConfig(dual=0.5)
