"""Divergences of denoising steps, guarded ratios and the loss without ratios, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rl import diffusion
from uae_jax.sampling import flow

SHAPE = (3, 8, 8, 4)
GOLDEN_K = (0.0016, 0.0031, 0.0084, 0.0177, 0.0349, 0.0688, 0.1435, 0.3401, 1.105)  # steps 0 to 8, a = 0.7, shift 3


def normal(seed, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), SHAPE)


@pytest.fixture(scope="module")
def schedule():
    return flow.make_schedule(10, form="sde", noise_level=0.7)


@pytest.mark.parametrize("step", range(9))
def test_the_divergence_is_that_of_two_normal_densities(schedule, step):
    # Oracle 9: KL of normals with one deviation, |dmu|^2 / (2 std^2), averaged over the latent; and K times the mean
    # squared difference of velocities, with the golden K.
    x, v, w = normal(0), normal(1), normal(2)
    means = [np.asarray(flow.transition(schedule, step, x, u)[0], np.float64) for u in (v, w)]
    std = float(schedule.std[step])
    wanted = ((means[0] - means[1]) ** 2).mean((1, 2, 3)) / (2 * std**2)
    got = diffusion.step_kl(schedule, step, v, w, "exact")
    np.testing.assert_allclose(got, wanted, rtol=1e-3)
    gap = np.square(np.asarray(v - w, np.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(got / gap, GOLDEN_K[step], rtol=0.03)  # the table has two to four digits
    width = float(schedule.sigma[step] - schedule.sigma[step + 1])
    np.testing.assert_allclose(diffusion.step_kl(schedule, step, v, w, "fg_code"), width * np.asarray(got), rtol=1e-5)
    np.testing.assert_allclose(diffusion.step_kl(schedule, step, v, w, "velocity"), gap, rtol=1e-5)


@pytest.mark.parametrize("form", ["exact", "fg_code", "velocity"])
def test_equal_policies_diverge_by_nothing_and_pull_nowhere(schedule, form):  # oracle 9
    v = normal(1)
    value, gradient = jax.value_and_grad(lambda u: diffusion.step_kl(schedule, 3, u, v, form).sum())(v)
    assert value == 0 and not np.asarray(gradient).any()


def test_an_ode_step_has_no_exact_divergence(schedule):
    ode = flow.make_schedule(10)
    np.testing.assert_array_equal(diffusion.step_kl(ode, 3, normal(1), normal(2), "exact"), 0)
    assert (diffusion.step_kl(ode, 3, normal(1), normal(2), "velocity") > 0).all()


def test_the_guard_centres_ratios_and_gives_every_step_one_scale(schedule):
    # Oracle 13: for x' drawn around mu_old, log r = (dmu . noise) / std - mean(dmu^2) / (2 std^2), averaged over D
    # numbers. The guarded exponent is std times the first part: mean 0, deviation rms(dmu) / sqrt(D) at every step.
    rows, numbers = 4000, 64
    for step in (0, 4, 8):
        std = float(schedule.std[step])
        old, change = jnp.zeros((rows, 4, 4, 4)), 0.05
        after = old + std * jax.random.normal(jax.random.key(step), old.shape)
        ratio = flow.logprob(after, old + change, std) - flow.logprob(after, old, std)
        guarded = np.asarray(diffusion.guarded_log_ratio(ratio, old + change, old, jnp.float32(std)))
        spread = change / np.sqrt(numbers)
        assert abs(guarded.mean()) < 5 * spread / np.sqrt(rows)  # of the mean of 4000
        assert guarded.std() == pytest.approx(spread, rel=0.05)
        bias = -(change**2) / (2 * std**2)
        assert float(ratio.mean()) == pytest.approx(
            bias, abs=5 * spread / std / np.sqrt(rows)
        )  # and before, it is not 0


def test_nft_asks_nothing_of_a_painting_that_is_neither_good_nor_bad():
    # Oracle 14: at v = v_old and r = 1/2 both sides weigh the same and pull in opposite directions.
    x, x0, v = normal(0), normal(1), normal(2)
    sigma = jnp.array([0.2, 0.5, 0.9])

    def loss(u, good):
        return diffusion.nft_loss(x, x0, sigma, u, v, good, 1.0).sum()

    np.testing.assert_allclose(jax.grad(loss)(v, jnp.full(3, 0.5)), 0, atol=1e-7)
    assert np.abs(jax.grad(loss)(v, jnp.array([0.5, 0.5, 0.6]))[2]).max() > 1e-5


def test_nft_follows_good_paintings_and_leaves_bad_ones():
    # One step of descent from v_old moves v towards (x - x0) / sigma, which reaches x0, where r > 1/2, and away where
    # r < 1/2.
    x, x0, v = normal(0), normal(1), normal(2)
    sigma = jnp.full(3, 0.5)
    good = jnp.array([1.0, 0.5, 0.0])
    step = -jax.grad(lambda u: diffusion.nft_loss(x, x0, sigma, u, v, good, 1.0).sum())(v)
    towards = (x - x0) / 0.5 - v
    along = np.asarray((step * towards).sum((1, 2, 3)))
    assert along[0] > 0 and abs(along[1]) < 1e-4 and along[2] < 0


def test_nft_by_a_direct_computation():
    # float64, without any of our functions.
    x, x0, v, old = (np.asarray(normal(i), np.float64) for i in range(4))
    sigma, good, beta = np.array([0.3, 0.6, 0.9]), np.array([0.2, 0.7, 1.0]), 0.5
    wanted = []
    for i in range(3):
        sides = []
        for sign in (1, -1):
            error = x[i] - sigma[i] * (old[i] + sign * beta * (v[i] - old[i])) - x0[i]
            sides.append((error**2).mean() / np.abs(error).mean())
        wanted.append(good[i] * sides[0] + (1 - good[i]) * sides[1])
    got = diffusion.nft_loss(*(jnp.asarray(a, jnp.float32) for a in (x, x0, sigma, v, old, good)), beta)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_optimality_maps_advantages_to_probabilities():
    np.testing.assert_allclose(diffusion.optimality(jnp.array([-9.0, -5.0, 0.0, 2.5, 5.0])), [0, 0, 0.5, 0.75, 1])


def test_replay_with_another_guidance_or_noise_level_changes_ratios(schedule):
    # Oracle 15, a negative control: what is scored must be what was sampled.
    x, positive, negative = normal(0), normal(1), normal(2)
    guided = lambda w: negative + w * (positive - negative)  # noqa: E731
    mean, std = flow.transition(schedule, 4, x, guided(4.5))
    after = mean + std * normal(3)
    own = flow.logprob(after, mean, std)
    other = flow.logprob(after, *flow.transition(schedule, 4, x, guided(4.0)))
    quieter = flow.make_schedule(10, form="sde", noise_level=0.5)
    third = flow.logprob(after, *flow.transition(quieter, 4, x, guided(4.5)))
    assert np.abs(other - own).min() > 1e-3 and np.abs(third - own).min() > 1e-3
    np.testing.assert_array_equal(flow.logprob(after, *flow.transition(schedule, 4, x, guided(4.5))), own)


def test_an_unknown_form_is_refused(schedule):
    with pytest.raises(ValueError, match="form is 'kl', wanted 'exact', 'fg_code' or 'velocity'"):
        diffusion.step_kl(schedule, 0, normal(0), normal(1), "kl")
