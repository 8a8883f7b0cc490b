"""Texts cut behind the longest give what the whole width gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.batching import place
from uae_jax.parallel.mesh import make_mesh
from uae_jax.parallel.sharding import constrain
from uae_jax.sampling import widths
from uae_jax.sampling.widths import at_width


@pytest.mark.parametrize(
    ("full", "ladder"),
    [
        (64, (64,)),
        (180, (120, 180)),  # five eighths of 180 are 112.5; up to the next multiple of 8
        (531, (336, 531)),
        (65, (48, 65)),
    ],
)
def test_ladder(full, ladder):
    assert widths.widths(full) == ladder


@pytest.mark.parametrize("longest", [1, 119, 120, 121, 180])
def test_the_least_width_that_holds_all_with_value_and_gradient(longest):
    """A sum over what counts is the same at every width, and so is its gradient, zero behind the lengths."""
    texts = jnp.asarray(np.random.default_rng(0).normal(size=(3, 180, 2)), jnp.float32)
    lengths = jnp.asarray([1, longest, max(longest // 2, 1)], jnp.int32)

    def told(cut):
        there = (jnp.arange(cut.shape[1]) < lengths[:, None])[..., None]
        return (there * cut**2).sum(), jnp.int32(cut.shape[1])

    @jax.jit
    def run(texts):
        return jax.value_and_grad(lambda x: at_width(told, x, lengths), has_aux=True)(texts)

    (value, width), gradient = run(texts)
    there = np.arange(180) < np.asarray(lengths)[:, None]
    wanted = np.asarray(texts, np.float64) * there[..., None]
    assert width == min(w for w in (120, 180) if w >= longest)
    np.testing.assert_allclose(value, (wanted**2).sum(), rtol=1e-6)
    np.testing.assert_array_equal(gradient, (2 * wanted).astype(np.float32))


def test_rows_that_devices_share_are_cut_rightly():
    """Texts split over their length, as hidden states are on a mesh with `sequence`, and their gradient."""
    mesh = make_mesh(fsdp=2, tensor=2, sequence=2)
    rng = np.random.default_rng(1)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((4, 96, 8), (8, 8)))
    lengths = jnp.asarray([3, 64, 20, 7], jnp.int32)

    def loss(w, x):
        hidden = constrain(jnp.tanh(x @ w), "batch", "length", None)
        there = (jnp.arange(96) < lengths[:, None])[..., None]
        return at_width(lambda cut: (cut**3 * there[:, : cut.shape[1]]).sum(), hidden, lengths)

    wanted = jax.value_and_grad(loss)(w, x)
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(loss))(w, place(x, mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, wanted)


@pytest.mark.parametrize("longest", [100, 180])
def test_a_gradient_flows_to_those_operands_that_it_is_asked_for(longest):
    """d/dw of sum_i (w x_i + c)^2 over what counts is sum_i 2 (w x_i + c) x_i; c, n and the key take part unmoved."""
    texts = jnp.asarray(np.random.default_rng(2).normal(size=(2, 180)), jnp.float32)
    lengths, key = jnp.asarray([longest, 7], jnp.int32), jax.random.key(0)

    def told(cut, more, n, key):
        there = jnp.arange(cut.shape[1]) < n[:, None]
        return ((more["w"] * cut + more["c"]) ** 2 * there).sum() + 0 * jax.random.uniform(key)

    @jax.jit
    def run(w, c):
        return jax.grad(lambda w: at_width(told, texts, lengths, {"w": w, "c": c}, lengths, key))(w)

    x = np.asarray(texts, np.float64)[np.arange(180) < np.asarray(lengths)[:, None]]
    np.testing.assert_allclose(run(0.5, 0.25), (2 * (0.5 * x + 0.25) * x).sum(), rtol=1e-5)


def test_the_choice_hands_on_no_weights():
    """What a choice returns is copied: for the way back it must return nothing but the result and the gradients."""
    layers, texts = jnp.ones((3, 8, 8)), jnp.ones((2, 96, 8))

    def told(cut, layers, scale):
        return jax.lax.scan(lambda h, w: (jnp.tanh(scale * h @ w), None), cut, layers)[0].sum()

    def loss(scale):
        return at_width(told, texts, jnp.asarray([9, 70]), layers, scale)

    program = jax.make_jaxpr(jax.grad(loss))(0.1)
    choices = [each for each in program.eqns if each.primitive.name == "cond"]
    assert [[out.aval.shape for out in each.outvars] for each in choices] == [[()], [()]]


def test_one_program_for_all_lengths():
    """Lengths are found out when a step runs; what they are compiles nothing anew."""
    run = jax.jit(lambda x, lengths: at_width(lambda cut: cut.sum(axis=1), x, lengths))
    for longest in (5, 120, 180):
        run(jnp.ones((1, 180, 2)), jnp.asarray([longest]))
    assert run._cache_size() == 1
