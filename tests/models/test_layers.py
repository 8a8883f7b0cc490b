"""The layers that all architectures share, against their formulas."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.models.layers import ACTIVATIONS, Linear, layer_norm, patches, rms_norm
from uae_jax.models.runtime import REMAT_POLICIES, Runtime, scan_layers

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)


def apply(module, params, *args, **collections):
    return module.apply({"params": params, **collections}, *args)


@pytest.mark.parametrize("features", [6, (6,), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_a_product_and_a_sum(features, bias):
    module = Linear(features, use_bias=bias)
    params = module.init(jax.random.key(0), X)["params"]
    shape = features if isinstance(features, tuple) else (features,)
    assert params["kernel"].shape == (4, *shape)
    assert ("bias" in params) == bias and (not bias or params["bias"].shape == shape)
    params = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), params)
    wanted = np.einsum("btd,df->btf", np.asarray(X, np.float64), np.asarray(params["kernel"]).reshape(4, -1))
    wanted = wanted.reshape(2, 5, *shape) + (np.asarray(params["bias"]) if bias else 0)
    np.testing.assert_allclose(apply(module, params, X), wanted, rtol=1e-5, atol=1e-6)


def test_a_fused_kernel_is_initialised_like_its_matrix():
    # Fan-in is the input width, 400. Taking it from the axes would give 400 * 3, and a deviation 1.7 times too small.
    x = jnp.zeros((1, 400))
    kernel = Linear((3, 200)).init(jax.random.key(0), x)["params"]["kernel"]
    assert np.std(kernel) == pytest.approx(1 / np.sqrt(400), rel=0.02)
    flat = Linear(600).init(jax.random.key(0), x)["params"]["kernel"]
    np.testing.assert_array_equal(kernel.reshape(400, 600), flat)


def test_dtypes_of_computation_and_of_parameters_are_apart():
    module = Linear(3, runtime=Runtime(dtype=jnp.bfloat16, param_dtype=jnp.float32))
    params = module.init(jax.random.key(0), X)["params"]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    assert apply(module, params, X).dtype == jnp.bfloat16
    module = Linear(3, runtime=Runtime(dtype=jnp.float32, param_dtype=jnp.bfloat16))
    assert module.init(jax.random.key(0), X)["params"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_norms_keep_their_statistics_in_full(dtype, offset):
    # At an offset of 1000 the one-pass variance E[x^2] - E[x]^2 has lost its digits: 10^6 has a spacing of 0.06.
    run = Runtime(dtype=dtype)
    x = (jnp.asarray(RNG.normal(size=(3, 64)), jnp.float32) + offset).astype(dtype)
    x64 = np.asarray(x, np.float64)
    scale, bias = (jnp.asarray(RNG.normal(size=64), jnp.float32) for _ in range(2))
    centred = x64 - x64.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    tolerance = 2e-4 if dtype == jnp.float32 else 2e-2
    got = apply(layer_norm(run, 1e-6), {"scale": scale, "bias": bias}, x)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), wanted * scale + bias, rtol=tolerance, atol=tolerance)
    plain = layer_norm(run, 1e-6, affine=False)
    assert "params" not in plain.init(jax.random.key(0), x)
    np.testing.assert_allclose(plain.apply({}, x).astype(jnp.float32), wanted, rtol=tolerance, atol=tolerance)
    got = apply(rms_norm(run, 1e-6), {"scale": scale}, x)
    wanted = x64 / np.sqrt((x64**2).mean(-1, keepdims=True) + 1e-6) * np.asarray(scale)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=tolerance, atol=tolerance)


def test_the_epsilon_of_a_norm_is_inside_the_root():
    x = jnp.asarray([[3e-3, -3e-3]])  # variance 9e-6, epsilon 1e-6: 3e-3 / sqrt(1e-5) = 0.9487; outside it is 0.9997
    np.testing.assert_allclose(
        layer_norm(Runtime(), 1e-6, affine=False).apply({}, x)[0], [0.94868, -0.94868], rtol=1e-4
    )


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        ("gelu", 0.8413447),  # 1 * Phi(1); the tanh form gives 0.8411920
        ("gelu_pytorch_tanh", 0.8411920),
        ("quick_gelu", 0.8457958),  # sigmoid(1.702)
        ("silu", 0.7310586),
    ],
)
def test_activations(name, at_one):
    assert float(ACTIVATIONS[name](jnp.float32(1.0))) == pytest.approx(at_one, abs=2e-6)
    assert float(ACTIVATIONS[name](jnp.float32(0.0))) == 0


def test_patches_are_read_row_by_row_as_row_column_channel():
    image = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    out = patches(image, 2)
    assert out.shape == (2, 2, 3, 12)
    for b, i, j in np.ndindex(2, 2, 3):
        wanted = np.asarray(image)[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(-1)
        np.testing.assert_array_equal(out[b, i, j], wanted)
    with pytest.raises(ValueError, match=re.escape("image is 4x6, wanted multiples of the patch side 4")):
        patches(image, 4)


# Stacks.


class Layer(nn.Module):
    runtime: Runtime = Runtime()

    @nn.compact
    def __call__(self, x, shift, gain):
        x = x + gain * jnp.tanh(Linear(4, runtime=self.runtime, name="up")(x) + shift)
        self.sow("intermediates", "hidden", x)
        return x, None


class Stack(nn.Module):
    runtime: Runtime

    @nn.compact
    def __call__(self, x, gains):
        stack = scan_layers(Layer, 3, self.runtime, in_axes=(nn.broadcast, 0))(self.runtime, name="layers")
        return stack(x, jnp.float32(0.5), gains)[0]


GAINS = jnp.asarray([1.0, 2.0, 3.0])


def test_a_stack_is_its_layers_one_after_another():
    params = Stack(Runtime()).init(jax.random.key(0), X, GAINS)["params"]
    kernel = params["layers"]["up"]["kernel"]
    assert kernel.shape == (3, 4, 4)
    assert not np.allclose(kernel[0], kernel[1])  # each layer has a key of its own
    out, state = Stack(Runtime()).apply({"params": params}, X, GAINS, mutable=["intermediates"])
    x, hidden = X, []
    for i in range(3):
        x, _ = apply(Layer(), jax.tree.map(lambda p, i=i: p[i], params["layers"]), x, jnp.float32(0.5), GAINS[i])
        hidden.append(x)
    np.testing.assert_allclose(out, x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(state["intermediates"]["layers"]["hidden"][0], jnp.stack(hidden), rtol=1e-6, atol=1e-6)


def test_adapters_of_a_stack_reach_their_own_layers():
    params = Stack(Runtime()).init(jax.random.key(0), X, GAINS)["params"]
    a, b = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((3, 4, 2), (3, 2, 4)))
    out = apply(Stack(Runtime()), params, X, GAINS, lora={"layers": {"up": {"a": a, "b": b}}})
    merged = {"layers": {"up": {**params["layers"]["up"], "kernel": params["layers"]["up"]["kernel"] + a @ b}}}
    np.testing.assert_allclose(out, apply(Stack(Runtime()), merged, X, GAINS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_rematerialisation_changes_neither_value_nor_gradient(remat):
    params = Stack(Runtime()).init(jax.random.key(0), X, GAINS)["params"]

    def loss(params, runtime):
        return jnp.sum(apply(Stack(runtime), params, X, GAINS) ** 2)

    wanted = jax.value_and_grad(loss)(params, Runtime())
    got = jax.value_and_grad(loss)(params, Runtime(remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)
    text = str(jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, Runtime(remat=remat)))
    assert ("remat" in text or "checkpoint" in text) == (remat != "none")


def test_unknown_remat_policies_are_refused():
    with pytest.raises(ValueError, match="remat is 'some', wanted one of none, dots, full"):
        Runtime(remat="some")
