"""Schedules and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.training.config import OptimiserConfig
from uae_jax.training.optimisers import make_optimiser, matrices, schedule


@pytest.mark.parametrize(
    "kind, halfway, end",
    [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1)],  # down to a tenth, halfway between
)
def test_schedule(kind, halfway, end):
    rate = schedule(OptimiserConfig(learning_rate=1.0, schedule=kind, warmup=10, final_fraction=0.1), 110)
    np.testing.assert_allclose([rate(0), rate(4), rate(9)], [0.1, 0.5, 1.0], rtol=1e-6)  # the rise
    np.testing.assert_allclose([rate(10), rate(60), rate(110), rate(500)], [1.0, halfway, end, end], rtol=1e-6)


def test_without_warmup_the_first_rate_is_the_top():
    assert schedule(OptimiserConfig(learning_rate=0.5, warmup=0), 10)(0) == 0.5
    assert schedule(OptimiserConfig(learning_rate=0.5, warmup=1), 10)(0) == 0.5


def test_decay_is_for_matrices():
    params = {
        "layers": {
            "attn": {"kernel": jnp.zeros((3, 4, 4)), "bias": jnp.zeros((3, 4))},
            "norm": {"scale": jnp.zeros((3, 4))},
        },
        "head": {"kernel": jnp.zeros((4, 4))},
        "tokens": jnp.zeros((9, 4)),
    }
    assert matrices(params) == {
        "layers": {"attn": {"kernel": True, "bias": False}, "norm": {"scale": False}},
        "head": {"kernel": True},
        "tokens": False,
    }


def test_decay_alone_shrinks_by_rate_times_decay():
    config = OptimiserConfig(learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.5)
    optimiser = make_optimiser(config, 10)
    params = {"a": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full(2, 2.0)}}
    changes, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    np.testing.assert_allclose(changes["a"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-6)
    np.testing.assert_allclose(changes["a"]["bias"], 0.0)


def test_what_is_not_trained_has_no_moments_and_does_not_move():
    params = {"w": jnp.ones(3), "table": jnp.ones(5)}
    optimiser = make_optimiser(OptimiserConfig(warmup=0), 10, trained={"w": True, "table": False})
    moments = optimiser.init(params)
    assert not any(getattr(leaf, "shape", None) == (5,) for leaf in jax.tree.leaves(moments))
    changes, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), moments, params)
    np.testing.assert_array_equal(changes["table"], 0.0)
    assert np.all(np.asarray(changes["w"]) != 0)
