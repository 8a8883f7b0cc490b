"""Paths on disks and in buckets."""

import errno
import pathlib

import pytest

from tests import buckets
from uae_jax import cli, paths
from uae_jax.weights import checkpoint
from uae_jax.weights.checkpoint import NewFolder
from uae_jax.weights.errors import WeightsError


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = buckets.Bucket()
    buckets.install(monkeypatch, bucket, tmp_path / "cache")
    return bucket


def write_model(folder, **texts):
    with NewFolder(folder, force=True) as new:
        checkpoint.write_json(new / "config.json", {"model_type": "clip"})
        for name, text in texts.items():
            (new / "sub").mkdir(exist_ok=True)
            (new / "sub" / name).write_text(text)


def test_a_file_that_does_not_fit_is_named(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        paths.write(tmp_path / "a", "x")
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))


def test_local_paths_are_pathlibs():
    assert paths.as_path("runs/a") == pathlib.Path("runs/a")
    assert paths.as_path("~/a") == pathlib.Path.home() / "a"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("s3://bucket/x", "wanted a local folder or gs://BUCKET/FOLDER"),
        ("gcs://bucket/x", "wanted a local folder or gs://BUCKET/FOLDER"),
        ("gs://", "wanted a local folder or gs://BUCKET/FOLDER"),
        ("gs:///x", "wanted a local folder or gs://BUCKET/FOLDER"),
        (pathlib.Path("gs://bucket/x"), "wanted two slashes: gs://bucket/x"),
    ],
)
def test_what_is_no_place_is_refused(path, message, bucket):
    with pytest.raises(ValueError, match=message):
        paths.as_path(path)


def test_a_bucket_without_its_library_is_refused_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "LIBRARIES", ("no_such_library",))
    monkeypatch.chdir(tmp_path)
    config = pathlib.Path(__file__).parents[1] / "configs/tiny/decoder.py"
    assert cli.main(["train", "--config", str(config), "--workdir", "gs://bucket/x"]) == 1
    assert "pip install 'uae_jax[gcs]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())  # no local "gs:" either


@pytest.mark.parametrize(
    "command",
    [
        ["data", "encode", "--config", "any.py", "--output", "gs://bucket/x"],
        ["demo", "--workdir", "gs://bucket/x"],
        ["generate", "a cat", "--output", "gs://bucket/x"],
        ["bench", "ablate", "--workdir", "gs://bucket/x"],
    ],
)
def test_commands_that_write_on_disks_alone_say_so(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert "gs://bucket/x is in a bucket, wanted a place on this machine" in capsys.readouterr().err


def test_a_model_is_written_to_a_bucket_and_read_from_it(bucket):
    write_model("gs://bucket/model", a="1", b="2")
    assert bucket.names("bucket/model") == ["config.json", "sub/a", "sub/b"]
    local = checkpoint.resolve("gs://bucket/model")
    assert local.name == "model" and (local / "sub/b").read_text() == "2"
    (local / "sub/b").write_text("kept")  # so that a second copy would show
    assert checkpoint.resolve("gs://bucket/model") == local and (local / "sub/b").read_text() == "kept"
    write_model("gs://bucket/model", a="3")
    assert bucket.names("bucket/model") == ["config.json", "sub/a"]  # nothing is left of the other
    assert (checkpoint.resolve("gs://bucket/model") / "sub/a").read_text() == "3"
    with pytest.raises(WeightsError, match="gs://bucket/other: no such folder"):
        checkpoint.resolve("gs://bucket/other")


def test_a_model_that_is_half_written_is_none(bucket, monkeypatch):
    write_model("gs://bucket/model", a="1")
    with monkeypatch.context() as patch:
        patch.setattr(paths, "_copy", lambda pairs: (_ for _ in ()).throw(RuntimeError("gone")))
        with pytest.raises(OSError, match="gs://bucket/model: RuntimeError: gone"):
            write_model("gs://bucket/model", a="2")
    assert not paths.is_whole(paths.as_path("gs://bucket/model"))
    with pytest.raises(WeightsError, match="half written"):
        checkpoint.resolve("gs://bucket/model")
    write_model("gs://bucket/model", a="2")  # what is left of one may be replaced
    assert paths.is_whole(paths.as_path("gs://bucket/model"))


def test_what_is_no_model_is_not_replaced_in_a_bucket(bucket):
    bucket.put("bucket/model/thesis.txt", b"")
    with pytest.raises(FileExistsError, match="holds no model"):
        write_model("gs://bucket/model")
    assert bucket.names("bucket/model") == ["thesis.txt"]


def test_an_error_leaves_a_bucket_as_it_was(bucket):
    with pytest.raises(KeyError), NewFolder("gs://bucket/model") as new:
        (new / "config.json").write_text("{}")
        raise KeyError
    assert bucket.names() == []
