"""How tokens are averaged, and what the estimates of divergence regularise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rl.tokens import OverlongConfig, overlong_price, token_kl, token_weights

MASK = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
LOSS = jnp.array([[1.0, 1.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0]])


@pytest.mark.parametrize(
    "aggregation, wanted",
    [
        ("sequence", (1 + 3) / 2),  # means 1 and 3
        ("token", (4 * 1 + 3) / 5),  # five tokens
        ("fixed", (4 / 4 + 3 / 4) / 2),  # sums over 4 places
    ],
)
def test_aggregations(aggregation, wanted):
    weights = token_weights(MASK, aggregation)
    assert float((weights * LOSS).sum(axis=1).mean()) == pytest.approx(wanted)


@pytest.mark.parametrize("aggregation", ["sequence", "token", "fixed"])
def test_micro_batches_add_up_to_the_whole(aggregation):
    # Oracle 12: weights of the whole batch, losses in two parts. Weights of each part would give 2 for "token".
    weights = token_weights(MASK, aggregation)
    whole = (weights * LOSS).sum(axis=1).mean()
    parts = [(weights[i : i + 1] * LOSS[i : i + 1]).sum(axis=1).mean() for i in range(2)]
    assert np.mean(parts) == pytest.approx(float(whole))


@pytest.mark.parametrize("aggregation", ["sequence", "token", "fixed"])
def test_what_is_masked_does_not_count(aggregation):  # oracle 12
    other = jnp.where(MASK > 0, LOSS, -1e6)
    weights = token_weights(MASK, aggregation)
    assert (weights * LOSS).sum() == (weights * other).sum()


def test_an_empty_mask_weighs_nothing():
    for aggregation in ("sequence", "token", "fixed"):
        np.testing.assert_array_equal(token_weights(jnp.zeros((2, 3)), aggregation), 0)


def test_length_is_free_up_to_a_point_and_then_costs_in_proportion():
    # DAPO's own setting, 20480 tokens of which the last 4096 cost, up to 1: equation 13 by hand.
    lengths = jnp.array([0, 16384, 17408, 18432, 20480, 30000])
    wanted = [0, 0, 0.25, 0.5, 1, 1]
    np.testing.assert_allclose(overlong_price(lengths, 20480, OverlongConfig(4096, 1.0)), wanted, rtol=1e-6)
    np.testing.assert_allclose(overlong_price(lengths, 20480, OverlongConfig(4096, 0.1)), np.multiply(wanted, 0.1))
    np.testing.assert_array_equal(overlong_price(lengths, 20480, OverlongConfig()), 0)


def test_a_price_that_is_half_said_is_refused():
    for wrong in ({"tokens": 8}, {"price": 0.1}, {"tokens": -1, "price": 0.1}):
        with pytest.raises(ValueError, match="wanted both more than 0, or both 0"):
            OverlongConfig(**wrong)
    with pytest.raises(ValueError, match="10 tokens below the limit of 8"):
        overlong_price(jnp.zeros(1), 8, OverlongConfig(10, 0.1))


# Oracle 11, by enumeration of a softmax over four tokens: no sampling.
LOGITS = np.array([0.3, -1.0, 0.8, 0.1])
REFERENCE = np.log(np.array([0.1, 0.2, 0.3, 0.4]))


def expected_gradient(form):
    """E over tokens of the gradient of the estimate, the tokens drawn from the policy itself."""
    p = np.exp(LOGITS) / np.exp(LOGITS).sum()

    def estimate(logits, token):
        logprob = jax.nn.log_softmax(logits)[token]
        return token_kl(logprob[None, None], jnp.asarray(REFERENCE[token])[None, None], form)[0, 0]

    gradients = [jax.grad(estimate)(jnp.asarray(LOGITS), token) for token in range(4)]
    return sum(weight * np.asarray(gradient) for weight, gradient in zip(p, gradients, strict=True))


def kl_gradient(forward):
    """Gradient in the logits of KL(p || ref), or of KL(ref || p), by central differences in float64."""

    def kl(logits):
        logp = logits - np.log(np.exp(logits).sum())
        one, other = (logp, REFERENCE) if forward else (REFERENCE, logp)
        return (np.exp(one) * (one - other)).sum()

    steps = np.eye(4) * 1e-5
    return np.array([(kl(LOGITS + step) - kl(LOGITS - step)) / 2e-5 for step in steps])


def test_k1_regularises_nothing():
    np.testing.assert_allclose(expected_gradient("k1"), 0, atol=1e-6)
    assert np.abs(kl_gradient(True)).max() > 0.05  # though there is something to regularise


def test_k2_has_the_gradient_of_the_reverse_divergence_and_k3_of_the_forward_one():
    np.testing.assert_allclose(expected_gradient("k2"), kl_gradient(True), atol=1e-5)
    np.testing.assert_allclose(expected_gradient("k3"), kl_gradient(False), atol=1e-5)
    assert np.abs(kl_gradient(True) - kl_gradient(False)).max() > 0.01  # they are not the same


def test_values_are_never_negative_and_zero_at_the_reference():
    for difference in (-2.0, -0.1, 0.0, 0.1, 2.0):
        k2, k3 = (float(token_kl(jnp.full((1, 1), difference), jnp.zeros((1, 1)), form)[0, 0]) for form in ("k2", "k3"))
        assert k2 == pytest.approx(difference**2 / 2) and k3 >= 0
        assert k3 == pytest.approx(np.exp(-difference) + difference - 1, abs=1e-6)


def test_unknown_names_are_refused():
    for call in (lambda: token_weights(MASK, "mean"), lambda: token_kl(MASK, MASK, "k4")):
        with pytest.raises(ValueError, match=r"(aggregation is 'mean'|form is 'k4'), wanted"):
            call()


def test_no_gradient_flows_into_the_reference():
    for form in ("k1", "k2", "k3"):
        gradient = jax.grad(lambda *pair, f=form: token_kl(*pair, f).sum(), argnums=1)(MASK, 0.5 * MASK)
        np.testing.assert_array_equal(gradient, 0)
