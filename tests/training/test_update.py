"""The compiled step: its arithmetic, what it does with numbers that are none, and that a mesh changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training import toy
from uae_jax.parallel.mesh import make_mesh
from uae_jax.training.config import EMAConfig, OptimiserConfig
from uae_jax.training.optimisers import make_optimiser
from uae_jax.training.state import make_state, planned_state
from uae_jax.training.update import averaged, make_step


def started(mesh=None, ema=0.0, settings=toy.Settings(), updates=1, **config):
    """A toy run before its first step: (step, state, frozen)."""
    mesh = mesh or make_mesh(devices=jax.devices()[:1])
    stage = toy.Toy(settings)
    stage.updates = updates
    parts = stage.load(mesh)
    optimiser = make_optimiser(OptimiserConfig(learning_rate=0.1, warmup=0, schedule="constant", clip=0.0), 100)
    state = make_state(parts, optimiser, 0, ema > 0, mesh)
    return jax.jit(make_step(stage, optimiser, ema=EMAConfig(ema), **config)), state, parts.frozen


def test_first_step_of_adam_moves_every_parameter_by_the_rate():
    # Adam's first update is rate * g / (|g| + eps): the sign of the gradient times 0.1.
    step, state, frozen = started()
    state, metrics = step(state, frozen, toy.batch())
    kernel = np.asarray(state.params["linear"]["kernel"])
    np.testing.assert_allclose(np.abs(kernel), 0.1, rtol=1e-5)
    assert int(state.step) == 1 and metrics["nonfinite"] == 0
    x, y = toy.batch()["x"], toy.batch()["y"]
    np.testing.assert_array_equal(np.sign(kernel), np.sign(x.T @ y))  # at zero weights the gradient is -x'y


def test_loss_falls():
    step, state, frozen = started()
    losses = []
    for _ in range(60):
        state, metrics = step(state, frozen, toy.batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.02 * losses[0]
    assert float(state.stage["seen"]) == 60 * 16


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_give_the_gradient_of_the_whole(accumulate):
    one, state, frozen = started()
    many, other, _ = started(accumulate=accumulate)
    for _ in range(3):
        state, metrics = one(state, frozen, toy.batch())
        other, accumulated = many(other, frozen, toy.batch())
    for name in ("loss", "above"):  # of the latter some micro-batches have more than others
        np.testing.assert_allclose(metrics[name], accumulated[name], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    assert float(other.stage["seen"]) == 3 * 16  # the stage's state passes from one micro-batch to the next


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_number_that_is_none_changes_nothing_and_names_its_sample(accumulate):
    step, state, frozen = started(ema=0.9, accumulate=accumulate)
    state, _ = step(state, frozen, toy.batch())
    before = jax.device_get((state.params, state.moments, state.ema, state.stage))
    bad = toy.batch()
    bad["x"][5, 0] = np.nan
    state, metrics = step(state, frozen, bad)
    after = jax.device_get((state.params, state.moments, state.ema, state.stage))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert metrics["nonfinite"] == 1
    assert np.flatnonzero(metrics["bad_examples"]).tolist() == [5]
    assert int(state.step) == 2 and int(state.nonfinite_in_a_row) == 1
    state, metrics = step(state, frozen, toy.batch())
    assert metrics["nonfinite"] == 0 and int(state.nonfinite_in_a_row) == 0


def test_after_too_many_in_a_row_nothing_moves_any_more():
    # The loop reads metrics now and then only; a good batch between the tenth bad one and the reading must not count.
    step, state, frozen = started(max_nonfinite=3)
    bad = toy.batch()
    bad["y"][:] = np.inf
    for _ in range(3):
        state, _ = step(state, frozen, bad)
    before = jax.device_get(state.params)
    state, metrics = step(state, frozen, toy.batch())
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
    assert metrics["nonfinite"] == 1 and int(state.nonfinite_in_a_row) == 4


def test_of_several_updates_each_is_refused_by_itself():
    # Sample 5 is in the second of two parts: the first update is made, as often as it takes; the step is half bad.
    step, state, frozen = started(updates=2, max_nonfinite=2)
    bad = toy.batch()
    bad["x"][5, 0] = np.nan
    for _ in range(3):
        before = jax.device_get(state.params)
        state, metrics = step(state, frozen, bad)
        moved = jax.tree.map(lambda a, b: (a != b).any(), before, jax.device_get(state.params))
        assert all(jax.tree.leaves(moved)) and int(state.nonfinite_in_a_row) == 0
        assert metrics["nonfinite"] == 0.5 and np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
        assert np.flatnonzero(metrics["bad_examples"]).tolist() == [5]


def test_too_many_in_a_row_are_counted_in_steps():
    step, state, frozen = started(updates=2, max_nonfinite=2)
    bad = toy.batch()
    bad["y"][:] = np.inf
    state, metrics = step(state, frozen, bad)  # two updates, but one step: the next may still change something
    assert metrics["nonfinite"] == 1 and int(state.nonfinite_in_a_row) == 1
    state, metrics = step(state, frozen, toy.batch())
    assert metrics["nonfinite"] == 0 and int(state.nonfinite_in_a_row) == 0


def test_noise_depends_on_the_step_and_on_nothing_else():
    step, state, frozen = started(settings=toy.Settings(noise=1.0))
    first, _ = step(state, frozen, toy.batch())
    again, _ = step(state, frozen, toy.batch())
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(first.params), jax.device_get(again.params))
    _, one = step(state, frozen, toy.batch())
    _, two = step(state.replace(step=state.step + 1), frozen, toy.batch())
    assert one["loss"] != two["loss"]


def test_average_starts_fast_and_ends_at_its_decay():
    # n = 0: decay min(0.9, 1/10); n = 1: 2/11; from n = 80 on (81/90) the stated 0.9.
    config = EMAConfig(0.9)
    one, zero = {"w": jnp.ones(())}, {"w": jnp.zeros(())}
    for n, decay in [(0, 0.1), (1, 2 / 11), (80, 0.9), (1000, 0.9)]:
        np.testing.assert_allclose(averaged(one, zero, jnp.asarray(n), config)["w"], decay, rtol=1e-6)
    rare = EMAConfig(0.9, every=4)
    np.testing.assert_allclose(averaged(one, zero, jnp.asarray(3), rare)["w"], 1.0)
    np.testing.assert_allclose(averaged(one, zero, jnp.asarray(4), rare)["w"], 2 / 11, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_a_mesh_gives_what_one_device_gives(axes):
    step, state, frozen = started(ema=0.9, settings=toy.Settings(width=8))
    for _ in range(3):
        state, _ = step(state, frozen, toy.batch(width=8))
    mesh = make_mesh(**axes)
    with jax.set_mesh(mesh):
        split, other, frozen = started(mesh, ema=0.9, settings=toy.Settings(width=8))
        moment = optax.tree_utils.tree_get(other.moments, "mu")["linear"]["kernel"]
        assert moment.sharding == other.params["linear"]["kernel"].sharding
        for _ in range(3):
            other, _ = split(other, frozen, toy.batch(width=8))
    for a, b in zip(
        jax.tree.leaves((state.params, state.ema)), jax.tree.leaves((other.params, other.ema)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["adamw", "muon"])  # the second keeps states of two kinds
@pytest.mark.parametrize("ema", [True, False])
def test_a_state_is_planned_as_it_is_made(kind, ema):
    mesh = make_mesh(fsdp=4, data=2)
    parts = toy.Toy(toy.Settings(width=8)).load(mesh)
    optimiser = make_optimiser(OptimiserConfig(kind=kind), 100)
    planned = planned_state(parts, optimiser, ema, mesh)
    assert planned.params["linear"]["kernel"].sharding.spec == jax.sharding.PartitionSpec(("fsdp",), None)
    with jax.set_mesh(mesh):
        made = make_state(parts, optimiser, 0, ema, mesh)

    def same(wanted, leaf):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)

    jax.tree.map(same, planned, made)
