"""Checkpoints: bit by bit into any sharding; damage is noticed; what fails to be written harms nothing."""

import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from tests.training.checkpoint_states import abstract, bits, full_disk, mesh, names, placed, saved, values
from uae_jax.training import arrays, manifest
from uae_jax.training.checkpoints import CheckpointError, CheckpointStore

P = PartitionSpec

PLACEMENTS = {
    "one device": lambda state: state,
    "eight on one axis": lambda state: placed(state, mesh(8), P("a")),
    "two by four": lambda state: placed(state, mesh(2, 4), P(("b", "a"))),
    "split four, copied twice": lambda state: placed(state, mesh(2, 4), P("b")),
    "copied on all": lambda state: placed(state, mesh(8), P()),
    "two devices": lambda state: placed(state, mesh(2), P("a")),
}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("one device", "one device"),
        ("one device", "eight on one axis"),
        ("eight on one axis", "eight on one axis"),
        ("eight on one axis", "two by four"),
        ("eight on one axis", "copied on all"),  # fsdp to data
        ("copied on all", "split four, copied twice"),
        ("two by four", "two devices"),
        ("split four, copied twice", "one device"),
    ],
)
def test_every_bit_comes_back_into_any_sharding(tmp_path, source, target):
    state = values(7)
    wanted = abstract(PLACEMENTS[target](values(0)))
    with_nan = {"loss": [0.5, float("nan")], "data": {"position": 12, "name": "ä"}}
    store = CheckpointStore(tmp_path / "run")
    store.save(7, PLACEMENTS[source](state), with_nan)
    restored = store.restore(wanted)
    assert restored.step == 7
    assert bits(restored.state) == bits(state)
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    for leaf, want in zip(jax.tree.leaves(restored.state), jax.tree.leaves(wanted), strict=True):
        assert leaf.sharding.is_equivalent_to(want.sharding, leaf.ndim)
    assert str(restored.record) == str(with_nan)  # as text, since NaN equals nothing
    store.close()


def test_keys_go_on_drawing_what_they_would_have(tmp_path):
    state = values(3)
    store = saved(tmp_path, 3)
    restored = store.restore(abstract(state)).state
    np.testing.assert_array_equal(jax.random.normal(restored.key, (5,)), jax.random.normal(state.key, (5,)))
    np.testing.assert_array_equal(jax.random.bits(restored.keys[2]), jax.random.bits(state.keys[2]))


def test_without_shardings_all_goes_to_the_default_device(tmp_path):
    store = saved(tmp_path, 1)
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), values(0))
    restored = store.restore(wanted).state
    assert bits(restored) == bits(values(1))
    assert restored.params["half"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_buffers_may_be_donated_while_the_save_is_under_way(tmp_path, monkeypatch):
    go = threading.Event()
    finish = arrays.finish
    monkeypatch.setattr(arrays, "finish", lambda folder: (go.wait(30), finish(folder)))
    state = {"w": jax.device_put(jnp.arange(8 * 4096.0), NamedSharding(mesh(8), P("a")))}
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    store = CheckpointStore(tmp_path)
    wanted = abstract(state)
    store.save(1, state, {})
    for _ in range(3):
        state = step(state)
    jax.block_until_ready(state)
    assert store.latest() is None  # still being written
    go.set()
    assert store.wait() == []
    restored = store.restore(wanted).state
    np.testing.assert_array_equal(restored["w"], np.arange(8 * 4096))
    assert float(jax.block_until_ready(step(restored))["w"][5]) == -1  # what was restored may be donated in turn
    store.close()


def test_nothing_there_is_no_error_and_makes_nothing(tmp_path):
    store = CheckpointStore(tmp_path / "none")
    assert store.latest() is None
    assert store.restore(abstract(values(0))) is None
    store.close()
    assert not (tmp_path / "none").exists()


def test_keeps_the_newest_and_every_kth(tmp_path):
    store = saved(tmp_path, *range(1, 9), keep=2, keep_every=3)
    assert names(tmp_path) == ["00000003", "00000006", "00000007", "00000008"]
    assert store.latest() == 8
    restored = store.restore(abstract(values(0)), step=3)
    assert (restored.step, restored.record) == (3, {"step": 3})
    assert bits(restored.state) == bits(values(3))


def test_the_step_just_saved_or_restored_is_not_written_twice(tmp_path):
    store = saved(tmp_path, 5)
    before = (tmp_path / "00000005" / "manifest.json").stat().st_mtime_ns
    store.save(5, values(5), {})
    assert store.wait() == []
    again = CheckpointStore(tmp_path)
    again.restore(abstract(values(0)))
    again.save(5, values(5), {})
    again.close()
    assert (tmp_path / "00000005" / "manifest.json").stat().st_mtime_ns == before


def test_a_later_checkpoint_is_never_overwritten(tmp_path):
    saved(tmp_path, 5, 10)
    store = CheckpointStore(tmp_path)
    store.restore(abstract(values(0)), step=5)
    for step in (5, 7, 10):
        with pytest.raises(CheckpointError, match=f"step {step} cannot be saved, wanted one above 10"):
            store.save(step, values(step), {})
    store.save(11, values(11), {})
    store.close()


@pytest.mark.parametrize(
    ("state", "record", "message"),
    [
        ({"a": jnp.ones(2), "n": 3}, {}, "n is int"),
        ({"a": np.ones(2), "b": 1.0}, {}, "a is ndarray, b is float"),
        ({"a": jnp.ones((0, 3))}, {}, r"a \[0, 3\]"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {}, "a/b, a/b"),
        ({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, {}, "a/b"),
        ({"a": None}, {}, "no leaves"),
        ({"a": jnp.ones(2)}, {"x": np.float32(1)}, "float32 is not JSON serializable"),
        ({"a": jnp.ones(2)}, {"x": [{3: 1}]}, r"keys \[3\] are no strings"),
    ],
)
def test_what_cannot_be_stored_is_refused_at_once(tmp_path, state, record, message):
    store = CheckpointStore(tmp_path)
    with pytest.raises((TypeError, ValueError), match=message):
        store.save(1, state, record)
    store.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize("option", ["keep", "keep_every", "max_failures"])
def test_refuses_numbers_below_one(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option} is 0, wanted at least 1"):
        CheckpointStore(tmp_path, **{option: 0})


# Structure


def test_another_structure_lists_every_leaf(tmp_path):
    store = CheckpointStore(tmp_path)
    state = {
        "same": jnp.ones(3),
        "shape": jnp.ones((2, 3)),
        "dtype": jnp.ones(3, jnp.float32),
        "gone": jnp.ones(1),
        "key": jax.random.key(0),
    }
    store.save(1, state, {})
    wanted = {
        "same": jax.ShapeDtypeStruct((3,), jnp.float32),
        "shape": jax.ShapeDtypeStruct((3, 2), jnp.float32),
        "dtype": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
        "new": {"x": jax.ShapeDtypeStruct((4,), jnp.int32)},
        "key": jax.ShapeDtypeStruct((), jax.random.key(0, impl="rbg").dtype),
    }
    with pytest.raises(CheckpointError) as caught:
        store.restore(wanted)
    for part in (
        "missing: new/x int32[4]",
        "unexpected: gone float32[1]",
        "shape: shape: got float32[2, 3], wanted float32[3, 2]",
        "dtype: dtype: got float32[3], wanted bfloat16[3]",
        "dtype: key: got key<fry>[], wanted key<rbg>[]",
    ):
        assert part in str(caught.value)
    assert "same" not in str(caught.value)
    assert names(tmp_path) == ["00000001"]  # a wrong question does not make it damaged
    store.close()


# Where folders cannot be renamed


@pytest.fixture
def bucket(monkeypatch):
    """The local disk taken for a bucket, as far as names go; no bucket is to be had here."""
    monkeypatch.setattr(manifest, "is_local", lambda path: False)


def test_in_a_bucket_a_checkpoint_is_one_when_all_is_there(tmp_path, bucket, monkeypatch):
    store = saved(tmp_path, 1, 2, 3, keep=2)
    assert names(tmp_path) == ["00000002", "00000003"]
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full_disk)
        store.save(4, values(4), {})
        assert [failure.step for failure in store.wait()] == [4]
    assert names(tmp_path) == ["00000002", "00000003"]
    shutil.copytree(tmp_path / "00000003", tmp_path / "00000005")
    (tmp_path / "00000005" / "unfinished").write_text("")  # as a kill in the middle leaves it
    again = CheckpointStore(tmp_path)
    assert names(tmp_path) == ["00000002", "00000003"]
    assert bits(again.restore(abstract(values(0))).state) == bits(values(3))
