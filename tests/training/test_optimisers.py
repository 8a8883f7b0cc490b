"""Schedules and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from uae_jax.training.config import OptimiserConfig
from uae_jax.training.optimisers import is_muons, make_optimiser, matrices, muon_axes, schedule


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


@pytest.mark.slow
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


def _muon(**more):
    return make_optimiser(OptimiserConfig(kind="muon", learning_rate=0.1, schedule="constant", warmup=0, **more), 10)


@pytest.mark.slow
def test_muon_moves_each_matrix_of_a_stack_as_optax_does_alone():
    """Against `optax.contrib.muon`, which was given one matrix at a time; three updates, so that momentum counts."""
    gradients = np.random.default_rng(0).normal(size=(3, 2, 8, 3, 4)).astype(np.float32)  # [update, L, in, K, out]
    params = {"layers": {"adaln": {"kernel": jnp.zeros((2, 8, 3, 4))}}}
    ours, alone = _muon(clip=0.0), optax.contrib.muon(0.1, consistent_rms=0.2)
    state, states = ours.init(params), [[alone.init(jnp.zeros((8, 4))) for _ in range(3)] for _ in range(2)]
    for gradient in gradients:
        changes, state = ours.update({"layers": {"adaln": {"kernel": jnp.asarray(gradient)}}}, state, params)
        for layer in range(2):
            for k in range(3):
                one = jnp.asarray(gradient[layer, :, k])
                known, states[layer][k] = alone.update(one, states[layer][k], jnp.zeros((8, 4)))
                change = changes["layers"]["adaln"]["kernel"][layer, :, k]
                np.testing.assert_allclose(change, known, rtol=1e-5, atol=1e-7)


def test_muon_leaves_inputs_outputs_and_vectors_to_adam():
    params = {
        "pos_embed": {"proj": {"kernel": jnp.zeros((4, 4))}},
        "last": {"attn": {"q": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)}}},
        "proj_out": {"kernel": jnp.zeros((4, 4))},
    }
    optimiser = _muon(others_rate=0.5)
    gradients = jax.tree.map(lambda x: jnp.full(x.shape, 1e-3).at[0].set(3e-3), params)
    changes, _ = optimiser.update(gradients, optimiser.init(params), params)
    for change in (changes["pos_embed"]["proj"]["kernel"], changes["proj_out"]["kernel"]):
        np.testing.assert_allclose(change, -0.1 * 0.5, rtol=1e-3)  # Adam's first update is the gradient's sign
    np.testing.assert_allclose(changes["last"]["attn"]["q"]["bias"], -0.1 * 0.5, rtol=1e-3)
    assert np.abs(changes["last"]["attn"]["q"]["kernel"]).max() < 0.04  # orthogonalised: 0.1 x 0.2 in the mean square


def test_what_muon_takes_for_a_matrix():
    kernels = {"conv": {"kernel": jnp.zeros((3, 3, 4, 5))}, "layers_0": {"q": {"kernel": jnp.zeros((2, 4, 5))}}}
    axes = muon_axes(kernels)
    assert axes["conv"]["kernel"] == ((0, 1, 2), (3,))  # all that one output is a sum over
    assert axes["layers_0"]["q"]["kernel"] == ((1,), (2,))
    assert is_muons("layers/mlp/up/kernel", ("embed",)) and not is_muons("layers/mlp/up/bias", ("embed",))
    assert not is_muons("token_embedder/kernel", ("embed",)) and not is_muons("layers/q/lora/a", ())
