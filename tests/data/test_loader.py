"""Batches: complete, in order, and exactly the same after a stop at any index."""

import dataclasses
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.streams import Broken, Numbers, Pictures
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.loader import Loader
from uae_jax.data.validity import TooManyBadRecords

PLAIN = DataConfig(resolution=0)
BUCKETS = DataConfig(resolution=48, aspects=(1.0, 2.0, 0.5), crop="random", flip=0.5, max_bad_fraction=0.5)


def loader(source=None, batch_size=4, seed=0, config=PLAIN, **settings):
    return Loader(config, batch_size, seed, sources=[Numbers(20) if source is None else source], **settings)


def numbers(batches):
    return [int(sample.caption) for batch in batches for sample in batch.samples]


def content(batch):
    """Everything in a batch, comparable."""
    return [
        (s.id, s.caption, s.field, None if s.image is None else (s.image.shape, s.image.tobytes()))
        for s in batch.samples
    ], json.dumps(batch.state)


def test_an_epoch_holds_every_record_once():
    got = numbers(loader(Numbers(20), epochs=1))
    assert sorted(got) == list(range(20)) and got != sorted(got)


def test_without_an_end_epochs_follow_each_other():
    batches = list(itertools.islice(loader(Numbers(6)), 6))  # 24 samples: four epochs, across batches
    got = numbers(batches)
    assert all(sorted(got[k : k + 6]) == list(range(6)) for k in range(0, 24, 6))


def test_the_same_seed_gives_the_same_batches():
    def first(seed):
        return [content(batch) for batch in itertools.islice(loader(Pictures(40), seed=seed, config=BUCKETS), 6)]

    assert first(3) == first(3) != first(4)


def test_validation_keeps_the_order_of_the_source():
    config = DataConfig(resolution=0, shuffle=False)
    assert numbers(itertools.islice(loader(Numbers(6), config=config), 3)) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


def test_what_fills_no_batch_is_dropped_or_kept():
    assert [len(b.samples) for b in loader(Numbers(10), epochs=1)] == [4, 4]
    rest = list(loader(Numbers(10), epochs=1, keep_rest=True))
    assert [len(b.samples) for b in rest] == [4, 4, 2] and sorted(numbers(rest)) == list(range(10))


def share(index, processes, batch_size=8):
    """The rows of one process, where a batch is split evenly."""
    return range(batch_size)[index * batch_size // processes : (index + 1) * batch_size // processes]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_disjoint_parts_that_are_complete_together(processes):
    parts = [numbers(loader(Numbers(24), batch_size=8, epochs=1, rows=share(i, processes))) for i in range(processes)]
    assert sorted(itertools.chain(*parts)) == list(range(24))
    assert {len(part) for part in parts} == {24 // processes}
    # Row by row they read what one process reads.
    alone = list(loader(Numbers(24), batch_size=8, epochs=1))
    rows = 8 // processes
    for k, batch in enumerate(alone):
        assert numbers([batch]) == [x for part in parts for x in part[k * rows : (k + 1) * rows]]


def test_rows_of_a_process_may_lie_apart():
    # As where a mesh follows the torus: a host's devices are no neighbours on it.
    alone = numbers(loader(Numbers(16), batch_size=8, epochs=1))
    parts = [numbers(loader(Numbers(16), batch_size=8, epochs=1, rows=rows)) for rows in ([0, 1, 4, 5], [2, 3, 6, 7])]
    assert parts[0] == [alone[i] for i in (0, 1, 4, 5, 8, 9, 12, 13)]
    assert sorted(parts[0] + parts[1]) == list(range(16))


def test_sources_are_mixed_by_weight():
    config = DataConfig(resolution=0, sources=(SourceConfig(weight=1.0), SourceConfig(weight=3.0)))
    stream = Loader(config, 8, 0, sources=[Numbers(10, "few"), Numbers(100, "many")])
    ids = [s.id.split(":")[0] for batch in itertools.islice(stream, 50) for s in batch.samples]
    assert abs(ids.count("few") - 100) <= 1 and len(ids) == 400


def test_batches_have_one_shape_and_every_shape_comes():
    batches = list(itertools.islice(loader(Pictures(40), config=BUCKETS), 30))
    shapes = [{sample.image.shape for sample in batch.samples} for batch in batches]
    assert all(len(shape) == 1 for shape in shapes)
    # 48 and its aspects 2 and 1/2, in multiples of 16: 67.9 -> 64, 33.9 -> 32.
    assert set.union(*shapes) == {(48, 48, 3), (32, 64, 3), (64, 32, 3)}


def test_bad_records_are_skipped_and_counted_and_the_rest_keeps_its_order(caplog):
    source = Pictures(77)  # 11 are no image and 7 have no caption, one of them both
    config = DataConfig(resolution=32, shuffle=False, max_bad_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        stream = loader(source, config=config, epochs=1, keep_rest=True)
        ids = [sample.id for batch in stream for sample in batch.samples]
    assert ids == [f"pictures:{i}" for i in range(77) if source.is_good(i)]
    assert stream.tally.used == 60 and {k: c.count for k, c in stream.tally.skipped.items()} == {
        "blank": stream.tally.skipped["blank"].count,
        "missing": 7 - stream.tally.skipped["blank"].count,  # by which of the two fields was drawn first
        "unreadable": 10,
    }
    assert "pictures:3" in caplog.text and "pictures:5" in caplog.text


def test_too_many_bad_records_end_the_run():
    config = DataConfig(resolution=32, max_bad_fraction=0.2)  # 17 of 77 are bad: 22%
    with pytest.raises(TooManyBadRecords, match="unreadable"):
        for _ in loader(Pictures(77), config=config):
            pass


def test_nothing_but_bad_records_does_not_go_round_forever():
    config = DataConfig(resolution=32, max_bad_fraction=1.0)  # the numbers have no images
    with pytest.raises(TooManyBadRecords, match="were all bad"):
        next(loader(Numbers(5), config=config))


def test_it_goes_on_exactly_from_every_index():
    whole = [content(b) for b in itertools.islice(loader(Pictures(40), config=BUCKETS), 25)]
    states = [json.loads(state) for _, state in whole]
    assert any(state["pending"] for state in states)
    for index, state in enumerate(states):
        again = loader(Pictures(40), config=BUCKETS)
        next(again)  # what was read before does not matter
        again.set_state(state)
        assert again.get_state() == state
        count = 25 - index - 1
        assert [content(b) for b in itertools.islice(again, count)] == whole[index + 1 :]


def test_a_fresh_loaders_state_is_the_beginning():
    stream = loader()
    start = stream.get_state()
    first = content(next(stream))
    stream.set_state(start)
    assert content(next(stream)) == first


def test_what_fills_no_batch_survives_a_stop_too():
    def whole():
        return loader(Pictures(30), config=BUCKETS, epochs=1, keep_rest=True)

    batches = list(whole())
    assert len(batches[-1].samples) < 4
    for index, batch in enumerate(batches):
        again = whole()
        again.set_state(batch.state)
        assert [content(b) for b in again] == [content(b) for b in batches[index + 1 :]]


def test_a_state_is_small_and_json():
    config = DataConfig(resolution=48, aspects=(1.0, 2.0, 0.5), max_bad_fraction=0.5)
    batch = next(itertools.islice(loader(Pictures(400), config=config, batch_size=64), 20, None))
    assert json.loads(json.dumps(batch.state)) == batch.state
    assert len(json.dumps(batch.state)) < 4000


def test_a_state_of_other_data_is_refused():
    state = next(loader(Numbers(20))).state
    with pytest.raises(ValueError, match=r"sizes \[21\], wanted sizes \[20\]"):
        loader(Numbers(21)).set_state(state)
    with pytest.raises(ValueError, match="seed 1, wanted seed 0"):
        loader(Numbers(20), seed=1).set_state(state)


def test_more_processes_go_on_where_fewer_were():
    alone = loader(Numbers(48), batch_size=8, epochs=1)
    first = [next(alone), next(alone)]
    parts = [loader(Numbers(48), batch_size=8, epochs=1, rows=share(i, 2)) for i in range(2)]
    for part in parts:
        part.set_state(first[-1].state)
    assert sorted(numbers(first) + numbers(parts[0]) + numbers(parts[1])) == list(range(48))


def test_fewer_processes_go_on_where_more_were():
    whole = list(loader(Numbers(48), batch_size=8, epochs=1))
    parts = [loader(Numbers(48), batch_size=8, epochs=1, rows=share(i, 2)) for i in range(2)]
    states = [[next(part), next(part)][1].state for part in parts]
    again = [loader(Numbers(48), batch_size=8, epochs=1, rows=rows) for rows in (share(1, 2), share(0, 1))]
    for stream in again:
        stream.set_state(*states)
    assert numbers(again[0]) == [x for batch in whole[2:] for x in numbers([batch])[4:]]
    assert again[1].tally.used == 16  # what both had
    assert numbers(again[1]) == numbers(whole[2:])


def test_a_process_that_met_a_bad_record_goes_on_behind_it():
    # The other one has read fewer records: with one process's place for both, a record would come twice, or never.
    bad = Numbers(32)
    states = []
    for i in range(2):
        stream = loader(bad, batch_size=8, epochs=1, rows=share(i, 2))
        next(stream)
        stream._go_to(stream._consumed + i)  # as if process 1 had skipped one
        states.append(stream.get_state())
    for i in range(2):
        stream = loader(bad, batch_size=8, epochs=1, rows=share(i, 2))
        stream.set_state(*states)
        assert stream.get_state()["consumed"] == 4 + i


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "rows are"),
        ({"rows": [0, 4]}, "rows are"),
        ({"rows": [1, 0]}, "rows are"),
        ({"config": DataConfig(workers=-1)}, "workers"),
        ({"source": Numbers(0)}, "no records"),
        ({"config": BUCKETS, "rows": [0, 1]}, "single one in aspects"),
        ({"config": DataConfig(sources=(SourceConfig(),) * 2)}, "1 sources were given for 2"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        loader(**settings)


def test_a_closed_loader_ends():
    stream = loader()
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_what_a_thread_is_reading_is_closed_by_that_thread(monkeypatch):
    # Where another one did, Python 3.11 crashed now and then.
    entered, go_on, closed_by = threading.Event(), threading.Event(), []

    class Slow(Numbers):
        def __getitem__(self, index):
            entered.set()
            assert go_on.wait(30)
            return super().__getitem__(index)

    class Reads:
        def __init__(self, reads):
            self.reads = reads

        def __next__(self):
            return next(self.reads)

        def close(self):
            closed_by.append(threading.current_thread())
            self.reads.close()

    stream = loader(Slow(20))
    monkeypatch.setattr(stream, "_reads", Reads(stream._reads))
    thread = threading.Thread(target=lambda: list(stream))
    thread.start()
    assert entered.wait(30)
    stream.close()
    assert closed_by == []
    go_on.set()
    thread.join()
    assert closed_by == [thread]


def children():
    """Processes that this one started: their ids."""
    return {int(line) for line in subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True).stdout.split()}


@pytest.mark.slow
def test_workers_change_nothing_and_leave_nothing_behind():
    before, shared = children(), set(os.listdir("/dev/shm"))
    whole = [content(b) for b in itertools.islice(loader(Pictures(40), config=BUCKETS), 12)]
    config = dataclasses.replace(BUCKETS, workers=2, buffer=6)
    with loader(Pictures(40), config=config) as stream:
        assert [content(b) for b in itertools.islice(stream, 12)] == whole
        assert len(children() - before) >= 2
        for index in (0, 4):  # there and back again, within one program
            stream.set_state(json.loads(whole[index][1]))
            assert [content(b) for b in itertools.islice(stream, 11 - index)] == whole[index + 1 :]
    alone = loader(Pictures(40), config=BUCKETS)  # and from workers back to none
    alone.set_state(json.loads(whole[5][1]))
    assert [content(b) for b in itertools.islice(alone, 6)] == whole[6:]
    deadline = time.monotonic() + 20
    trackers = {pid for pid in children() - before if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()}
    while children() - before - trackers and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children() - before - trackers
    assert set(os.listdir("/dev/shm")) <= shared


@pytest.mark.slow
def test_the_end_and_errors_come_through_workers():
    config = DataConfig(resolution=0, shuffle=False, workers=2)
    with loader(Numbers(10), config=config, epochs=1, keep_rest=True) as stream:
        assert numbers(stream) == list(range(10))
    with loader(Broken(10), config=config) as stream:
        assert numbers([next(stream)]) == [0, 1, 2, 3]
        with pytest.raises(OSError, match="the disk is gone"):
            next(stream)


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, os, time
        from tests.data.streams import Numbers
        from uae_jax.data.config import DataConfig
        from uae_jax.data.loader import Loader

        if __name__ == "__main__":
            stream = Loader(DataConfig(resolution=0, workers=2), 4, 0, sources=[Numbers(1000)])
            next(stream)
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            time.sleep(600)
        """)
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    main = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:  # a signal to the whole group leaves them: the main process saves first
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)
        assert all(running(pid) for pid in workers)
    finally:
        main.kill()
        main.wait()
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(running(pid) for pid in workers)


def running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_images_are_those_of_the_records():
    class Squares:
        name = "squares"

        def __len__(self):
            return 4

        def __getitem__(self, index):
            from uae_jax.data.records import Record

            return Record(f"squares:{index}", np.full((32, 32, 3), index, np.uint8), {"text": str(index)})

    for batch in itertools.islice(loader(Squares(), config=DataConfig(resolution=32)), 3):
        assert all((sample.image == int(sample.caption)).all() for sample in batch.samples)
