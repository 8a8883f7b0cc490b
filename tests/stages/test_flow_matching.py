"""Noise levels, weights and the error of flow matching, against diffusers and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sampling import flow
from uae_jax.stages import flow_matching


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap"])
def test_weights_are_those_of_diffusers(scheme):
    torch = pytest.importorskip("torch")
    training = pytest.importorskip("diffusers.training_utils")
    sigma = np.linspace(0.05, 1, 9, dtype=np.float32)
    wanted = training.compute_loss_weighting_for_sd3(scheme, torch.tensor(sigma)).numpy()
    np.testing.assert_allclose(flow_matching.loss_weight(jnp.asarray(sigma), scheme), wanted, rtol=1e-6)


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting is 'cosine', wanted"):
        flow_matching.loss_weight(jnp.ones(1), "cosine")


def test_levels_are_logit_normal():
    drawn = np.asarray(
        flow_matching.draw_sigmas(jax.random.split(jax.random.key(0), 20_000), 0.5, 0.8, 1.0), np.float64
    )
    logits = np.log(drawn / (1 - drawn))
    # Mean and deviation of 20000 draws scatter by 0.8 / sqrt(20000) = 0.006 and 0.004; five times that.
    assert logits.mean() == pytest.approx(0.5, abs=0.03)
    assert logits.std() == pytest.approx(0.8, abs=0.02)


def test_the_shift_is_that_of_the_sampler():
    u = np.linspace(1, 1e-3, 7)
    sigmas = flow.sigmas(7, shift=3.0, sigma_compat="exact")[:-1]
    np.testing.assert_allclose(flow_matching.shifted(jnp.asarray(u, jnp.float32), 3.0), sigmas, rtol=1e-5)


def test_the_shift_grows_with_the_side():
    # Four times the pixels of 512x512: twice the shift, and half as much for a quarter.
    assert flow_matching.shift_of_size(3.0, 1024, 1024, 1024) == 3.0
    assert flow_matching.shift_of_size(3.0, 1024, 512, 512) == 1.5
    assert flow_matching.shift_of_size(3.0, 1024, 2048, 512) == 3.0


def test_the_error_of_the_true_velocity_is_zero():
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    sigma = jnp.asarray([0.25, 1.0])
    x = flow_matching.noised(x0, eps, sigma)
    np.testing.assert_allclose(x[0], 0.75 * x0[0] + 0.25 * eps[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(x[1], eps[1])
    np.testing.assert_array_equal(flow_matching.squared_error(eps - x0, x0, eps), 0)
    # Off by two everywhere: a mean of fours, not a sum.
    np.testing.assert_allclose(flow_matching.squared_error(eps - x0 + 2, x0, eps), 4, rtol=1e-5)
