"""Checkpoints that cannot be written: reported with their step, and the ones before them unharmed."""

import errno
import logging
import resource
import sys
import types

import pytest

from tests.training.checkpoint_states import abstract, bits, full_disk, names, saved, values
from uae_jax.training import arrays, checkpoint_folder, manifest
from uae_jax.training.checkpoints import CheckpointError, CheckpointStore


@pytest.fixture(params=[True, False], ids=["asynchronous", "synchronous"])
def good_store(tmp_path, request):
    store = CheckpointStore(tmp_path, asynchronous=request.param)
    store.save(1, values(1), {"step": 1})
    assert store.wait() == []
    return store


PLACES = {
    "making the folder": (checkpoint_folder.CheckpointFolder, "begin"),
    "writing arrays": (arrays, "write"),
    "joining arrays": (arrays, "finish"),
    "writing the manifest": (manifest, "write"),
    "forcing to the disk": (manifest, "sync"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_failed_write_is_reported_with_its_step_and_harms_nothing(good_store, tmp_path, monkeypatch, place, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(*PLACES[place], full_disk)
        good_store.save(2, values(2), {})
        failures = good_store.wait()
    assert [failure.step for failure in failures] == [2]
    assert "No space left on device" in failures[0].message
    assert str(failures[0]).startswith("the checkpoint of step 2 could not be written: OSError")
    assert "step 2" in caplog.text
    assert good_store.check() == []  # each is returned once
    assert good_store.failures_in_a_row == 1
    assert names(tmp_path) == ["00000001"]
    assert bits(good_store.restore(abstract(values(0))).state) == bits(values(1))
    good_store.save(3, values(3), {})
    assert good_store.wait() == []
    assert good_store.failures_in_a_row == 0
    good_store.close()
    assert names(tmp_path) == ["00000001", "00000003"]


def test_a_step_that_failed_can_be_saved_again(good_store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write", full_disk)
        good_store.save(2, values(2), {})
        good_store.wait()
    good_store.save(2, values(2), {})
    good_store.close()
    assert good_store.latest() == 2


def test_three_failures_in_a_row_end_the_run(good_store, monkeypatch):
    monkeypatch.setattr(manifest, "write", full_disk)
    for step in (2, 3):
        good_store.save(step, values(step), {})
        assert [failure.step for failure in good_store.wait()] == [step]
    good_store.save(4, values(4), {})
    with pytest.raises(
        CheckpointError,
        match=r"3 failures in a row: the checkpoints of steps 2, 3, 4 .*No space left.*last good one is of step 1",
    ):
        good_store.wait()
    for ask in (good_store.check, good_store.wait, good_store.close, lambda: good_store.save(5, values(5), {})):
        with pytest.raises(CheckpointError, match="4"):
            ask()
    assert good_store.restore(abstract(values(0))).step == 1


def test_close_raises_if_the_last_save_failed(good_store, monkeypatch):
    monkeypatch.setattr(arrays, "finish", full_disk)
    good_store.save(2, values(2), {})
    with pytest.raises(CheckpointError, match=r"step 2 could not be written: OSError.*last good one is of step 1"):
        good_store.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's event loop is gone by then
def test_too_large_a_file_for_the_file_system(good_store, tmp_path, caplog):
    """A real refusal by the kernel, in TensorStore's own threads."""
    large = values(2, rows=40_000)  # 5 MB of float32, more than the limit
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        good_store.save(2, large, {})
        failures = good_store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [failure.step for failure in failures] == [2]
    assert failures[0].message.startswith("File too large (ValueError: ")
    assert "Traceback" not in caplog.text  # one line is enough
    assert names(tmp_path) == ["00000001"]
    assert bits(good_store.restore(abstract(values(0))).state) == bits(values(1))


def test_what_fails_after_a_failure_is_silent_and_nothing_else_is(monkeypatch, caplog):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    arrays._hush_stragglers.__wrapped__()
    for text, of in (("Event loop is closed", None), ("Event loop is closed", "mine"), ("another", None)):
        sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text), object=of))
    assert [str(event.exc_value) for event in told] == ["Event loop is closed", "another"]
    assert told[0].object == "mine"
    never = "Task exception was never retrieved\nfuture: <Task finished coro=<f() done, defined at %s:1>"
    for place in ("lib/orbax/checkpoint/serialization.py", "mine.py"):
        logging.getLogger("asyncio").error(never, place)
    assert "mine.py" in caplog.text and "orbax" not in caplog.text


@pytest.mark.parametrize("when", ["while it is removed", "after it was removed"])
def test_what_other_threads_go_on_writing_is_removed_too(good_store, tmp_path, monkeypatch, when, caplog):
    """TensorStore's threads do not stop when one of them fails, and it makes the folders it misses."""
    kind, late = type(good_store.folder), [True]
    rmtree = kind.rmtree

    def removed_meanwhile(path):
        if late and when == "after it was removed":
            rmtree(path)
        if late:
            late.clear()
            (path / "d").mkdir(parents=True, exist_ok=True)
            (path / "d" / "part").write_text("x")
            if when == "while it is removed":
                raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        else:
            rmtree(path)

    monkeypatch.setattr(kind, "rmtree", removed_meanwhile)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "finish", full_disk)
        good_store.save(2, values(2), {})
        assert [failure.step for failure in good_store.wait()] == [2]
    assert not late
    assert names(tmp_path) == ["00000001"]
    assert "cannot be removed" not in caplog.text


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("not a folder")
    store = CheckpointStore(tmp_path / "run")
    store.save(1, values(1), {})
    failures = store.wait()
    assert [failure.step for failure in failures] == [1]
    with pytest.raises(CheckpointError, match="there is no earlier one"):
        store.close()
    assert (tmp_path / "run").read_text() == "not a folder"


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    saved(tmp_path, 1)
    for name in (".tmp-0badcafe-00000002", ".tmp-0badcafe-00000001-old", "notes", "00000000.corrupt", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    store = CheckpointStore(tmp_path)
    assert names(tmp_path) == [".hidden", "00000000.corrupt", "00000001", "notes"]
    assert store.latest() == 1


def test_what_cannot_be_deleted_does_not_fail_the_save(tmp_path, monkeypatch, caplog):
    store = saved(tmp_path, 1, keep=1)
    monkeypatch.setattr(type(store.folder), "rmtree", full_disk)
    with caplog.at_level(logging.WARNING):
        store.save(2, values(2), {})
        assert store.wait() == []
    assert "cannot be deleted" in caplog.text
    assert store.latest() == 2
