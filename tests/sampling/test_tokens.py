"""Token sampling against transformers' logits processors and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sampling import tokens


def logits_of(seed, rows=3, vocabulary=37):
    return np.random.default_rng(seed).normal(size=(rows, vocabulary)).astype(np.float32) * 3


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k", "penalty"),
    [(0.7, 1.0, 0, 1.0), (1.0, 0.8, 0, 1.0), (1.3, 1.0, 5, 1.0), (0.7, 0.9, 10, 1.3), (2.0, 0.05, 0, 0.8)],
)
def test_the_distribution_is_that_of_transformers(temperature, top_p, top_k, penalty):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    logits = logits_of(0)
    history = np.random.default_rng(1).integers(0, 37, size=(3, 9))
    processors = transformers.LogitsProcessorList([transformers.TemperatureLogitsWarper(temperature)])
    if penalty != 1:
        processors.insert(0, transformers.RepetitionPenaltyLogitsProcessor(penalty))
    if top_k:
        processors.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(transformers.TopPLogitsWarper(top_p))
    wanted = torch.softmax(processors(torch.tensor(history), torch.tensor(logits)), -1).numpy()
    seen = np.zeros((3, 37), bool)
    np.put_along_axis(seen, history, True, axis=1)
    sampling = tokens.token_sampling(temperature, top_p, top_k, penalty)
    got = jax.nn.softmax(tokens.sampling_logits(jnp.asarray(logits), sampling, jnp.asarray(seen)))
    np.testing.assert_array_equal(np.asarray(got) > 0, wanted > 0)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_logprobs_are_those_of_the_truncated_distribution():
    # Probabilities 1/2, 1/4, 1/8, 1/8 cut to the first two become 2/3 and 1/3, not 1/2 and 1/4.
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.125, 0.125]]).repeat(64, 0))
    drawn, density = tokens.choose(logits, jax.random.split(jax.random.key(0), 64), tokens.token_sampling(top_k=2))
    assert set(np.asarray(drawn).tolist()) == {0, 1}
    np.testing.assert_allclose(np.exp(density), np.where(drawn == 0, 2 / 3, 1 / 3), rtol=1e-6)


def test_greedy_takes_the_likeliest_and_reports_its_model_probability():
    logits = jnp.log(jnp.array([[0.1, 0.7, 0.2]]))
    drawn, density = tokens.choose(logits, jax.random.split(jax.random.key(0), 1), tokens.token_sampling(0.0))
    assert drawn.tolist() == [1]
    np.testing.assert_allclose(density, np.log([0.7]), rtol=1e-6)


def test_what_is_not_allowed_is_not_drawn_and_has_no_probability():
    logits = jnp.asarray(logits_of(3)).at[:, 5].set(50.0)  # by far the likeliest
    allowed = np.arange(37) % 5 != 0
    for temperature in (0.0, 0.7):
        sampling = tokens.token_sampling(temperature, allowed=allowed)
        drawn, logprob = tokens.choose(logits, jax.random.split(jax.random.key(0), 3), sampling)
        assert allowed[np.asarray(drawn)].all()
        kept = np.asarray(logits, np.float64)[:, allowed] / (temperature or 1.0)
        wanted = np.take_along_axis(np.asarray(logits, np.float64), np.asarray(drawn)[:, None], 1)[:, 0]
        wanted = wanted / (temperature or 1.0) - np.log(np.exp(kept).sum(axis=1))
        np.testing.assert_allclose(logprob, wanted, rtol=1e-5, atol=1e-6)


def test_frequencies_follow_temperature():
    # Logits 0 and 1 at temperature 0.5 are odds of e^2: 0.8808. Standard error with 20000 draws: 0.0023.
    logits = jnp.tile(jnp.array([0.0, 1.0]), (20_000, 1))
    drawn, _ = tokens.choose(logits, jax.random.split(jax.random.key(3), 20_000), tokens.token_sampling(0.5))
    assert abs(float(drawn.mean()) - 0.8808) < 0.01


def test_a_row_does_not_depend_on_its_batch():
    logits, keys = jnp.asarray(logits_of(2, rows=6)), jax.random.split(jax.random.key(7), 6)
    whole, _ = tokens.choose(logits, keys, tokens.token_sampling(1.5))
    alone, _ = tokens.choose(logits[4:5], keys[4:5], tokens.token_sampling(1.5))
    assert whole[4] == alone[0]


def test_new_strengths_do_not_recompile():
    run = jax.jit(tokens.choose)
    logits, keys = jnp.asarray(logits_of(3)), jax.random.split(jax.random.key(7), 3)
    for temperature, top_p in [(0.7, 0.9), (0.8, 0.95), (1.1, 0.5)]:
        run(logits, keys, tokens.token_sampling(temperature, top_p))
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -2}, "top_k is -2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tokens.token_sampling(**settings)
