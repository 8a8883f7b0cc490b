"""Texts cut behind the longest give what the whole width gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.batching import place
from uae_jax.parallel.mesh import make_mesh
from uae_jax.parallel.sharding import constrain
from uae_jax.stages import widths
from uae_jax.stages.widths import at_width


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


def test_one_program_for_all_lengths():
    """Lengths are found out when a step runs; what they are compiles nothing anew."""
    run = jax.jit(lambda x, lengths: at_width(lambda cut: cut.sum(axis=1), x, lengths))
    for longest in (5, 120, 180):
        run(jnp.ones((1, 180, 2)), jnp.asarray([longest]))
    assert run._cache_size() == 1
