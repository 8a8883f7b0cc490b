"""Rows of a batch and the devices that have them, seen from one process."""

import jax
import numpy as np
import pytest

from uae_jax.parallel import global_arrays
from uae_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("axes", [{"data": 8}, {"fsdp": 8}, {"data": 2, "tensor": 4}, {"tensor": 8}])
def test_one_process_has_all_rows(axes):
    np.testing.assert_array_equal(global_arrays.rows_here(make_mesh(**axes), 16), np.arange(16))


def test_rows_go_to_the_devices_of_their_place():
    rows = np.arange(16, dtype=np.float32)[:, None]
    placed = global_arrays.put_rows(rows, range(16), 16, make_mesh(data=4, tensor=2))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(4, 1)}
    np.testing.assert_array_equal(placed, rows)
    np.testing.assert_array_equal(global_arrays.to_host({"x": placed})["x"], rows)


def test_arrays_that_are_on_the_mesh_are_moved():
    mesh = make_mesh(data=8)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    array = global_arrays.put(np.arange(8), whole)
    assert global_arrays.put(array, split).sharding == split
