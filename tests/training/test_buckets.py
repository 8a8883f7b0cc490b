"""Runs in a bucket: nothing is renamed, nothing appended to, and nothing lies on this machine alone."""

import json
import logging

import pytest

from tests import buckets
from tests.training import test_loop, toy
from uae_jax import paths
from uae_jax.report import page
from uae_jax.report.runs import read_runs
from uae_jax.stages import registry
from uae_jax.training import chain, loop, metrics
from uae_jax.weights import checkpoint

RUN = "gs://bucket/runs/one"


@pytest.fixture(scope="module")
def everything():
    """One for all tests, as TensorStore keeps the address that it finds first."""
    bucket = buckets.Bucket()
    with buckets.served(bucket) as environment:
        yield bucket, environment


@pytest.fixture
def bucket(everything, tmp_path, monkeypatch):
    bucket, environment = everything
    bucket.objects.clear()
    buckets.install(monkeypatch, bucket, tmp_path / "cache")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(registry, "find", lambda name: toy.Toy)
    monkeypatch.chdir(tmp_path)
    return bucket


@pytest.mark.slow
def test_a_run_in_a_bucket_is_stopped_and_goes_on_as_a_local_one(bucket, tmp_path, monkeypatch):
    run = test_loop.experiment()
    loop.train(run, tmp_path / "whole")
    for step in (2, 9):
        with monkeypatch.context() as patch:
            test_loop.stop_after(patch, step)
            with pytest.raises(loop.Stopped, match=f"step {step}, saved"):
                loop.train(run, RUN)
        # What a machine that is gone afterwards has left: the same command anywhere goes on from it.
        assert json.loads(bucket.objects["bucket/runs/one/metrics.jsonl"][0].splitlines()[-1])["step"] == step
    folder = loop.train(run, RUN)
    assert str(folder) == f"{RUN}/model"
    assert test_loop.result(folder) == test_loop.result(tmp_path / "whole/model")
    got, wanted = test_loop.history(RUN), test_loop.history(tmp_path / "whole")
    assert [line for line in got if "evaluation/loss" in line] == [line for line in wanted if "evaluation/loss" in line]
    names = bucket.names("bucket/runs/one")
    assert {"config.json", "model/toy.json", "pictures/guesses/00000006.png", "pictures/guesses/00000012.png"} <= {
        *names
    }
    assert {name.split("/")[1] for name in names if name.startswith("checkpoints/")} == {"00000009", "00000012"}
    assert not [name for name in names if "part" in name or paths.UNFINISHED in name or ".tmp" in name]
    assert not [path for path in tmp_path.iterdir() if path.name not in ("whole", "cache")]
    before = dict(bucket.objects)
    assert loop.train(run, RUN) == folder  # done already
    assert {name: bucket.objects[name] for name in before if "/model/" in name} == {
        name: value for name, value in before.items() if "/model/" in name
    }
    assert str(page.write(RUN)) == f"{RUN}/report.html"
    (read,) = read_runs(paths.as_path(RUN))
    assert read.finished and read.name == "one" and read.step == 12 and list(read.pictures["guesses"]) == [6, 12]


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, caplog):
    run = test_loop.experiment(validation=None, steps=8)
    loop.train(run, RUN)
    bucket.put("bucket/runs/one/checkpoints/00000008/record.json", b"{}")
    bucket.objects = {name: value for name, value in bucket.objects.items() if "/model/" not in name}
    with caplog.at_level(logging.ERROR):
        loop.train(run, RUN)
    assert "00000008.corrupt" in caplog.text
    found = {name.split("/")[0] for name in bucket.names("bucket/runs/one/checkpoints")}
    assert found == {"00000004", "00000008", "00000008.corrupt"}


@pytest.mark.slow
def test_a_stage_starts_from_a_model_in_the_bucket(bucket):
    first, second = (
        test_loop.experiment(steps=2),
        test_loop.experiment(steps=2, settings=toy.Settings(model="previous")),
    )
    folders = chain.train_stages([("one", first), ("two", second)], RUN)
    assert [str(folder) for folder in folders] == [f"{RUN}/1_one/model", f"{RUN}/2_two/model"]
    started = test_loop.result(folders[1])["from"]
    assert json.loads((checkpoint.resolve(started) / "toy.json").read_text()) == test_loop.result(folders[0])


def test_metrics_go_to_a_bucket_now_and_then_and_at_the_end(bucket, monkeypatch):
    with metrics.MetricsWriter(RUN) as writer:
        writer.scalars(1, {"loss": 1.0})
        assert "tensorboard" not in " ".join(bucket.names())
        monkeypatch.setattr(metrics, "_UPLOAD_SECONDS", -1)
        writer.scalars(2, {"loss": 2.0})
        assert [line["step"] for line in metrics.read_history(RUN)] == [1, 2]
        assert sum("tfevents" in name for name in bucket.names()) == 1
        monkeypatch.setattr(metrics, "_UPLOAD_SECONDS", 300)
        writer.scalars(3, {"loss": 3.0})
        assert [line["step"] for line in metrics.read_history(RUN)] == [1, 2]
    assert [line["step"] for line in metrics.read_history(RUN)] == [1, 2, 3]
    events = [bucket.objects[f"bucket/{name}"][0] for name in bucket.names() if "tfevents" in name]
    assert [each.count(b"loss") for each in events] == [2, 1]  # each file what is new, in the order of names


def test_a_bucket_that_fails_is_an_error_of_the_run_or_no_matter(bucket, monkeypatch):
    class HttpError(Exception):  # as gcsfs has it: no OSError
        pass

    def fail(*args):
        raise HttpError("503")

    told = []
    with metrics.MetricsWriter(RUN, report=told.append) as writer:
        writer.scalars(1, {"loss": 1.0})
        with monkeypatch.context() as patch:
            patch.setattr(bucket, "open", fail)
            writer.flush()
            assert "HttpError: 503" in told[0]
    assert [line["step"] for line in metrics.read_history(RUN)] == [1]
    monkeypatch.setattr(bucket, "exists", fail)
    monkeypatch.setattr(toy.Toy, "load", None)  # nothing is allocated before that
    with pytest.raises(OSError, match=r"gs://bucket/runs/one/config\.json: HttpError: 503"):
        loop.train(test_loop.experiment(), RUN)
