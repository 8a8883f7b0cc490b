"""Batches come in order, on the mesh, ahead of time, and the thread leaves nothing behind."""

import itertools
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from tests.data.streams import Broken, Numbers
from uae_jax.data.config import DataConfig
from uae_jax.data.loader import Loader
from uae_jax.parallel.mesh import make_mesh
from uae_jax.training.feed import Feed, place_batch


def collate(samples):
    number = np.array([int(sample.caption) for sample in samples], np.int32)
    return {"number": number, "deep": {"square": np.stack([number**2] * 3, -1).astype(np.float32)}}


def loader(source=None, batch_size=8, **settings):
    config = DataConfig(resolution=0, shuffle=False)
    return Loader(config, batch_size, 0, sources=[source or Numbers(100)], **settings)


@pytest.fixture
def feed():
    """Makes feeds, closes them, and checks that their threads are gone."""
    made = []

    def make(*args, collate=collate, mesh=None, **settings):
        made.append(Feed(loader(*args), collate, mesh or make_mesh(data=8), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_batches_come_in_order_with_their_states(feed):
    wanted = list(itertools.islice(loader(), 5))
    for fed, batch in zip(feed(), wanted, strict=False):
        assert fed.ids == [sample.id for sample in batch.samples]
        assert fed.state == batch.state  # of this batch, not of those that were read ahead
        np.testing.assert_array_equal(fed.batch["number"], [int(sample.caption) for sample in batch.samples])
        assert fed.samples == []


def test_samples_are_kept_when_asked(feed):
    fed = next(feed(keep_samples=True))
    assert [sample.caption for sample in fed.samples] == [str(i) for i in range(8)]


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "tensor": 4}, {"fsdp": 8}])
def test_rows_are_split_over_data_and_fsdp(feed, axes):
    mesh = make_mesh(**axes)
    fed = next(feed(mesh=mesh))
    parts = axes.get("data", 1) * axes.get("fsdp", 1)
    for leaf in jax.tree.leaves(fed.batch):
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(8 // parts, *leaf.shape[1:])}
        assert leaf.sharding.mesh == mesh
    np.testing.assert_array_equal(fed.batch["deep"]["square"][:, 1], np.arange(8) ** 2)


def test_batches_are_ready_before_they_are_asked_for(feed):
    made = []

    def counting(samples):
        made.append(len(samples))
        return collate(samples)

    stream = feed(collate=counting, depth=3)
    deadline = time.monotonic() + 20
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(made) == 4  # three ready and one that waits for room: no more, or memory would fill up
    next(stream)


def test_waiting_is_counted(feed):
    stream = feed(Numbers(100, delay=0.01))  # 8 samples take at least 0.08 s
    for _ in range(3):
        next(stream)
    assert stream.waited_s > 0.15
    assert stream.waited_fraction() > 0.5
    time.sleep(0.6)  # meanwhile two batches become ready
    next(stream)
    assert stream.waited_fraction() < 0.5


def test_the_end_comes_through_and_stays():
    with_end = Feed(loader(Numbers(20), epochs=1), collate, make_mesh(data=8))
    assert len(list(with_end)) == 2
    assert list(with_end) == []
    with_end.close()


def test_what_goes_wrong_in_reading_is_raised_with_its_traceback(feed):
    stream = feed(Broken(100), 4)
    next(stream)
    for _ in range(2):  # and again, should somebody go on regardless
        with pytest.raises(OSError, match="the disk is gone") as caught:
            next(stream)
    assert "streams.py" in "".join(traceback.format_exception(caught.value))


def test_what_goes_wrong_in_collating_is_raised(feed):
    def failing(samples):
        raise KeyError("no such tokens")

    with pytest.raises(KeyError, match="no such tokens"):
        next(feed(collate=failing))


def test_an_array_without_rows_is_named(feed):
    with pytest.raises(ValueError, match=r"batch\['mask'\] has shape \(3, 8\), wanted 8 rows first"):
        next(feed(collate=lambda samples: {"mask": np.zeros((3, 8))}))
    with pytest.raises(ValueError, match="wanted 8 rows"):
        place_batch({"scalar": np.float32(1)}, range(8), 8, make_mesh(data=8))


@pytest.mark.parametrize("taken", [0, 1])
def test_closing_ends_it_at_once(feed, taken):
    stream = feed(Numbers(100, delay=0.1), 64)  # a batch would take 6.4 s
    if taken:
        stream = feed()  # this one waits for room
        next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 3  # a record, not a batch
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_it_goes_on_where_it_stopped(feed):
    first = feed()
    taken = [next(first) for _ in range(3)]
    first.close()  # two more had been read
    again = loader()
    again.set_state(taken[-1].state)
    second = Feed(again, collate, make_mesh(data=8))
    np.testing.assert_array_equal(next(second).batch["number"], np.arange(24, 32))
    second.close()


def test_a_feed_without_room_is_refused():
    with pytest.raises(ValueError, match="depth"):
        Feed(loader(), collate, make_mesh(data=8), depth=0)


@pytest.mark.slow
def test_processes_put_their_parts_together(tmp_path):
    # Two processes of two devices read half of each batch; the batch of both is that of one process, row by row.
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = tmp_path / "process.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import jax
        import numpy as np

        if __name__ == "__main__":
            index = int(sys.argv[1])
            jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, index)
            from tests.training.test_feed import Feed, collate, loader, make_mesh
            from uae_jax.parallel.global_arrays import rows_here

            stream = Feed(loader(rows=rows_here(make_mesh(data=4), 8)), collate, make_mesh(data=4))
            fed = [next(stream), next(stream)][1]
            mine = [shard.data.tolist() for shard in fed.batch["number"].addressable_shards]
            print(fed.batch["deep"]["square"].shape, mine, fed.ids[0])
            stream.close()
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(index), str(port)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert outputs[0] == "(8, 3) [[8, 9], [10, 11]] numbers:8"
    assert outputs[1] == "(8, 3) [[12, 13], [14, 15]] numbers:12"
