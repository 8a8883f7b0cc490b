"""The one reward: mixtures by hand, and what is held out or wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages import judges as small
from uae_jax.rewards import reconstruction
from uae_jax.rewards.reconstruction import Judges, RewardPart


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("scorers"))


@pytest.fixture(scope="module")
def judges(parts):
    return Judges.load(parts)  # clip counts, dinov2 is held out


def pictures(seed, side=24):
    return jax.random.uniform(jax.random.key(seed), (2, side, side, 3))


def functions(**of):
    """Judges of functions alone."""
    return Judges({}, of, dict.fromkeys(of, 1.0))


@pytest.mark.slow
def test_an_image_is_like_itself(judges):
    reward = judges(judges.params, pictures(0), pictures(0))
    for value in (reward.total, *reward.parts.values()):
        np.testing.assert_allclose(value, 1, atol=1e-6)


def test_parts_are_the_scorers_cosines(judges, parts):
    # The host's path, PIL and all, is compared with transformers elsewhere; no resizing here, so no rounding either.
    from PIL import Image

    from uae_jax.rewards.scorers import Scorer

    first, second = (np.round(np.asarray(pictures(seed, small.SIDE)) * 255).astype(np.uint8) for seed in (0, 1))
    reward = judges(judges.params, first / np.float32(255), second / np.float32(255))
    for part in parts:
        scorer = Scorer.from_pretrained(part.model)
        wanted = scorer.similarity(*([Image.fromarray(x) for x in side] for side in (first, second)))
        np.testing.assert_allclose(reward.parts[part.name], wanted, atol=1e-5)


def test_the_total_is_the_mean_by_weights_and_held_out_parts_have_none():
    ones = lambda value: lambda a, b: jnp.full(len(a), value)  # noqa: E731
    mixture = Judges({}, {"a": ones(0.2), "b": ones(0.8), "c": ones(-1.0)}, {"a": 3.0, "b": 1.0, "c": 0.0})
    reward = mixture({}, pictures(0), pictures(1))
    np.testing.assert_allclose(reward.total, (3 * 0.2 + 0.8) / 4)
    np.testing.assert_allclose(reward.parts["c"], -1.0)
    assert mixture.rewarded == ("a", "b")
    assert set(mixture.metrics(reward.parts)) == {"reward/a", "reward/b", "held_out/c"}


@pytest.mark.slow
def test_it_is_differentiable_and_held_out_parts_pull_nowhere(judges, parts):
    def total(image, which):
        return which(which.params, pictures(0), image).total.sum()

    gradient = jax.grad(total)(pictures(1), judges)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0
    alone = Judges.load(parts[:1])
    np.testing.assert_allclose(gradient, jax.grad(total)(pictures(1), alone), rtol=1e-5, atol=1e-8)


def test_references_are_looked_at_once_for_a_group(judges):
    seen = judges.look(judges.params, pictures(0))
    whole = judges(judges.params, pictures(0), pictures(1))
    split = judges.compare(judges.params, seen, pictures(0), pictures(1))
    np.testing.assert_array_equal(whole.total, split.total)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, 1.5, -2.0])
def test_what_is_no_reward_is_never_a_low_one(bad):
    wrong = functions(mine=lambda a, b: jnp.array([0.5, bad]))
    reward = wrong({}, pictures(0), pictures(1))
    assert reward.total[0] == 0.5 and np.isnan(reward.total[1]) and np.isnan(reward.parts["mine"][1])


def test_a_reward_of_another_length_is_refused_by_name():
    with pytest.raises(ValueError, match=r"reward 'mine' has shape \(1,\), wanted \(2,\)"):
        functions(mine=lambda a, b: jnp.zeros(1))({}, pictures(0), pictures(1))


def test_the_unified_score_is_the_plain_mean_of_the_four():
    parts = {
        "clip": jnp.array([0.9]),
        "longclip": jnp.array([0.8]),
        "dinov2": jnp.array([0.7]),
        "mine": jnp.array([0.0]),
    }
    np.testing.assert_allclose(reconstruction.unified(parts), [0.8])  # of those of the four that there are
    np.testing.assert_allclose(reconstruction.unified({"mine": jnp.array([0.3])}), [0.3])


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="wanted each name once and a weight above 0"):
        reconstruction.check_parts((RewardPart("clip"), RewardPart("clip")))
    with pytest.raises(ValueError, match="wanted each name once and a weight above 0"):
        reconstruction.check_parts((RewardPart("clip", 0.0),))
    with pytest.raises(ValueError, match="has a model and a function, wanted one of them"):
        RewardPart("mine", model="folder", function="a.b")
    with pytest.raises(ValueError, match="a cannot be imported"):
        reconstruction.check_parts((RewardPart("mine", function="a.b"),))
    with pytest.raises(ValueError, match="wanted at least one above 0"):
        Judges({}, {"mine": lambda a, b: a}, {"mine": 0.0})
