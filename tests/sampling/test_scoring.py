"""Log-probabilities of given tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sampling.scoring import token_scores


class Head:
    """Stands in for the encoder: the head alone."""

    def apply(self, variables, hidden, method):
        assert method == "logits"
        return hidden @ variables["head"]


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 13, 5)), rng.normal(size=(5, 9))
    targets = rng.integers(0, 9, (2, 13))
    logits = hidden @ head
    targets[0, 3] = logits[0, 3].argmax()
    wanted = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    return (
        jnp.asarray(hidden, jnp.float32),
        jnp.asarray(head, jnp.float32),
        targets,
        wanted,
        logits.argmax(-1) == targets,
    )


@pytest.mark.parametrize("chunk", [0, 4, 5, 12, 13])  # what divides 13 positions, and what does not
def test_scores_are_log_softmax(case, chunk):
    hidden, head, targets, wanted, best = case
    got, likeliest, entropy = jax.jit(lambda h: token_scores(Head(), {"head": head}, h, targets, chunk))(hidden)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_array_equal(likeliest, best)
    logits = np.asarray(hidden, np.float64) @ np.asarray(head, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(-1), rtol=1e-5)


def test_a_temperature_divides_logits(case):
    hidden, head, targets, *_ = case
    hot = token_scores(Head(), {"head": head}, hidden, targets, temperature=2.0)
    half = token_scores(Head(), {"head": head / 2}, hidden, targets)
    np.testing.assert_allclose(hot.logprob, half.logprob, rtol=1e-6)


def test_scores_are_among_the_allowed_tokens(case):
    hidden, head, targets, *_ = case
    allowed = np.arange(9) != 4
    targets = np.where(targets == 4, 3, targets)
    got = token_scores(Head(), {"head": head}, hidden, targets, allowed=allowed)
    fewer = token_scores(Head(), {"head": head[:, allowed]}, hidden, targets - (targets > 4))
    for name in ("logprob", "best", "entropy"):
        np.testing.assert_allclose(getattr(got, name), getattr(fewer, name), rtol=1e-5)
    # What is not allowed is never asked for but behind an answer's end, where it is multiplied by 0: so it is finite.
    gradient = jax.grad(
        lambda head: token_scores(Head(), {"head": head}, hidden, targets * 0 + 4, allowed=allowed)[0].sum()
    )
    assert np.isfinite(gradient(head)).all()


def test_chunks_have_the_same_gradient(case):
    hidden, head, targets, *_ = case

    def total(head, chunk):
        return token_scores(Head(), {"head": head}, hidden, targets, chunk)[0].sum()

    for chunk in (4, 5):
        np.testing.assert_allclose(jax.grad(total)(head, chunk), jax.grad(total)(head, 0), rtol=1e-5, atol=1e-5)


def test_chunks_never_hold_all_logits(case):
    hidden, head, targets, *_ = case
    shapes = jax.make_jaxpr(lambda h: token_scores(Head(), {"head": head}, h, targets, 4))(hidden)
    assert "f32[2,4,9]" in str(shapes)
    assert "f32[2,13,9]" not in str(shapes)
