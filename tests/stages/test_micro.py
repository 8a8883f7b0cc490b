"""Working in parts changes nothing but memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.batching import place
from uae_jax.parallel import sharding
from uae_jax.parallel.mesh import make_mesh
from uae_jax.stages.micro import in_parts, of_later_updates, parts_within


@pytest.mark.parametrize("most, parts", [(1, 12), (4, 3), (5, 3), (7, 2), (12, 1), (99, 1)])
def test_parts_are_the_fewest_that_divide(most, parts):
    assert parts_within(12, most, make_mesh(devices=jax.devices()[:1])) == parts


@pytest.mark.parametrize(
    ("rows", "most", "mesh", "parts"),
    [
        (72, 8, {"data": 8}, 3),  # 9 of each device; two parts of 36 would be whole on all of them
        (72, 8, {"data": 2, "fsdp": 4}, 3),
        (64, 4, {"fsdp": 8}, 2),
        (12, 2, {"data": 2, "fsdp": 4}, 3),  # two devices share them, and four do the same
        (9, 4, {"fsdp": 8}, 3),  # none can
    ],
)
def test_devices_share_every_part(rows, most, mesh, parts):
    mesh = make_mesh(**mesh)
    assert parts_within(rows, most, mesh) == parts
    split = sharding.shards(rows, "batch", mesh)
    assert sharding.shards(rows // parts, "batch", mesh) == split and rows // parts // split <= most


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_parts_give_what_the_whole_gives_in_its_order(parts):
    rows = {"a": jnp.arange(12.0), "b": jnp.arange(24.0).reshape(12, 2)}
    sizes = []

    def double(some):
        sizes.append(len(some["a"]))
        return jax.tree.map(lambda x: 2 * x, some)

    got = in_parts(double, rows, parts)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), got, rows)
    assert sizes[0] == 12 // parts


@pytest.mark.parametrize(("updates", "accumulate"), [(2, 1), (3, 2), (6, 1)])
def test_later_updates_are_worked_on_as_they_train(updates, accumulate):
    # Update u has the rows u, u + U, ..., and of these micro-batch a every A-th, as `training.update` deals them out.
    rows, seen = {"a": jnp.arange(12.0)}, []

    def double(some):
        jax.debug.callback(lambda x: seen.append(x.tolist()), some["a"])
        return {"b": 2 * some["a"]}

    got = of_later_updates(double, rows, updates, accumulate)
    own = np.arange(12) % updates == 0
    np.testing.assert_array_equal(got["before"], own)
    np.testing.assert_array_equal(got["b"], np.where(own, 0, 2 * np.arange(12)))
    jax.effects_barrier()
    assert {len(part) for part in seen} == {12 // (updates * accumulate)}


def test_copies_of_the_weights_have_their_own_rows():
    rows = np.arange(16.0)
    mesh = make_mesh(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        got = jax.jit(lambda x: of_later_updates(lambda some: {"b": 2 * some}, x, 2, 2))(place(rows, mesh))
    np.testing.assert_array_equal(got["b"], np.where(got["before"], 0, 2 * rows))


def test_only_a_part_is_computed_at_a_time():
    text = str(jax.make_jaxpr(lambda x: in_parts(lambda y: jnp.outer(y, y).sum(1), x, 4))(jnp.zeros(16)))
    assert "f32[4,4]" in text and "f32[16,16]" not in text
