"""Checkpoint folders: every way they are published in, every way they can be broken, and writing them whole."""

import errno
import json
import os
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.weights import toy
from uae_jax.weights import checkpoint, registry
from uae_jax.weights.checkpoint import NewFolder, open_checkpoint, read_json, resolve, write_checkpoint, write_json
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.pretrained import load_pretrained
from uae_jax.weights.safetensors import write_file

F32 = np.dtype(np.float32)


def shard(path, *keys, value=1.0):
    """Writes a small file that holds these keys."""
    write_file(path, {key: ((2,), F32) for key in keys}, [np.full(2, value, np.float32) for _ in keys])
    return path


def index(folder, weight_map, name="model.safetensors.index.json"):
    write_json(folder / name, {"metadata": {}, "weight_map": weight_map})
    return folder / name


def refusal(folder) -> str:
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(folder)
    message = str(caught.value)
    assert message.isprintable()
    return message


# What opens.


def test_one_file_by_name_or_by_folder(tmp_path):
    file = shard(tmp_path / "any_name.safetensors", "a", "b")
    assert set(open_checkpoint(file)) == set(open_checkpoint(tmp_path)) == {"a", "b"}


def test_shards_with_an_index_and_numbered_shards_without(tmp_path):
    shard(tmp_path / "model-00001-of-00002.safetensors", "a")
    shard(tmp_path / "model-00002-of-00002.safetensors", "b", "c")
    assert set(open_checkpoint(tmp_path)) == {"a", "b", "c"}
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2, 2)]
    index(tmp_path, dict(zip("abc", names, strict=True)))
    assert set(open_checkpoint(tmp_path)) == {"a", "b", "c"}


def test_variants_beside_the_plain_name_are_left_alone(tmp_path):
    # As in the published SD3.5 folders: model.safetensors beside model.fp16.safetensors, and an index of each.
    shard(tmp_path / "model.fp16.safetensors", "a", value=16)
    shard(tmp_path / "model.safetensors", "a", value=32)
    index(tmp_path, {"a": "model.fp16.safetensors"}, "model.fp16.safetensors.index.json")
    np.testing.assert_array_equal(open_checkpoint(tmp_path)["a"].read(), [32, 32])


def test_the_layout_of_the_hugging_face_cache_works(tmp_path):
    # snapshots/<revision>/<name> are links into ../../blobs/<hash>, which lie outside the folder.
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    shard(blobs / "1111", "a")
    index(blobs, {"a": "model-00001-of-00001.safetensors"}, "2222")
    (snapshot / "model-00001-of-00001.safetensors").symlink_to("../../blobs/1111")
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/2222")
    np.testing.assert_array_equal(open_checkpoint(snapshot)["a"].read(), [1, 1])
    (blobs / "1111").unlink()  # an interrupted download leaves such a link
    assert "model-00001-of-00001.safetensors: missing shard, the index wants 1 tensors from it" in refusal(snapshot)


# What does not.


@pytest.mark.parametrize("suffix", checkpoint.PICKLES)
def test_pickles_are_refused_unread(tmp_path, suffix):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    file = tmp_path / f"pytorch_model{suffix}"
    file.write_bytes(pickle.dumps(Bomb()))
    for path in (file, tmp_path):
        message = refusal(path)
        assert f"{file}: a pickle file" in message and "save_file" in message
    index(tmp_path, {"a": file.name})
    assert f"{file}: a pickle file" in refusal(tmp_path)
    renamed = tmp_path / "model.safetensors"
    file.rename(renamed)
    assert str(renamed) in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


OUTSIDE = ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "..\\secret.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_shard_names_that_leave_the_folder_are_refused(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", folder / "sub" / "model.safetensors", folder / "good.safetensors"):
        shard(place, "a")
    index(folder, {"a": name, "b": "good.safetensors"})
    message = refusal(folder)
    assert "is outside the folder, wanted a plain file name" in message and repr(name) in message


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "a\0b.safetensors", "a\nb.safetensors"])
def test_shard_names_that_no_file_system_takes(tmp_path, name):
    index(tmp_path, {"a": name})
    assert "missing shard" in refusal(tmp_path)


@pytest.mark.parametrize("weight_map", [None, 3, [], {"a": 3}, {"a": ["model.safetensors"]}])
def test_a_malformed_index_is_refused(tmp_path, weight_map):
    index(tmp_path, weight_map)
    assert "weight_map is missing or malformed" in refusal(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000, b'{"a": 1, "a": 2}'])
def test_broken_json_is_refused(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text)
    with pytest.raises(WeightsError, match=r"config\.json: ") as caught:
        read_json(path)
    assert str(caught.value).isprintable()


def test_endless_json_is_refused_unread(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(200_000_000)  # sparse
    with pytest.raises(WeightsError, match="200000000 bytes of JSON, wanted at most 100000000"):
        read_json(path)
    with pytest.raises(WeightsError, match="missing, wanted a JSON file"):
        read_json(tmp_path / "absent.json")
    with pytest.raises(WeightsError, match="missing, wanted a JSON file"):
        read_json(path / "config.json")  # below a file
    with pytest.raises(WeightsError, match="Is a directory"):
        read_json(tmp_path)


def test_missing_and_misplaced_tensors_name_file_and_key(tmp_path):
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    shard(tmp_path / one, "a")
    assert f"{tmp_path / two}: missing shard, {one} says that there are 2" in refusal(tmp_path)
    index(tmp_path, {"a": one, "b": two, "c": two})
    assert f"{tmp_path / two}: missing shard, the index wants 2 tensors from it" in refusal(tmp_path)
    shard(tmp_path / two, "b")
    assert f"{tmp_path / two}: c: not in this file, the index wants it there" in refusal(tmp_path)
    index(tmp_path, {"a": one, "b": one})
    assert f"{tmp_path / one}: b: not in this file, the index wants it there" in refusal(tmp_path)
    index(tmp_path, {"a": two, "b": one})
    assert f"{tmp_path / one}: a: the index has it in {two}" in refusal(tmp_path)
    shard(tmp_path / two, "b", "c")
    index(tmp_path, {"a": one, "b": two})
    assert f"{tmp_path / two}: c: not in model.safetensors.index.json" in refusal(tmp_path)


def test_ambiguous_folders_are_refused(tmp_path):
    shard(tmp_path / "x.safetensors", "a")
    shard(tmp_path / "y.safetensors", "b")
    assert "2 .safetensors files and no index; name the one to read" in refusal(tmp_path)
    index(tmp_path, {"a": "x.safetensors"}, "x.safetensors.index.json")
    index(tmp_path, {"b": "y.safetensors"}, "y.safetensors.index.json")
    assert "2 indexes (x.safetensors.index.json, y.safetensors.index.json), wanted one" in refusal(tmp_path)


def test_numbered_shards_must_be_one_set(tmp_path):
    shard(tmp_path / "model-00001-of-00001.safetensors", "a")
    shard(tmp_path / "model-00001-of-00002.safetensors", "a")
    assert "model-00001-of-00002.safetensors: not one of the 1 shards" in refusal(tmp_path)
    (tmp_path / "model-00001-of-00001.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    assert "a: stands in" in refusal(tmp_path)  # both shards hold it


def test_empty_and_absent_folders(tmp_path):
    assert "no .safetensors file in it" in refusal(tmp_path)
    assert "missing, wanted a safetensors file or a folder of them" in refusal(tmp_path / "absent")
    (tmp_path / "model.safetensors").mkdir()
    assert "Is a directory" in refusal(tmp_path)


def test_a_repository_is_found_in_the_cache_without_a_network(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    revision = "0" * 40
    folder = tmp_path / "models--who--toy" / "snapshots" / revision / "transformer"
    folder.mkdir(parents=True)
    (tmp_path / "models--who--toy" / "refs").mkdir()
    (tmp_path / "models--who--toy" / "refs" / "main").write_text(revision)
    shard(folder / "model.safetensors", "a")
    for subfolder in ("", "transformer"):
        found = resolve("who/toy", subfolder=subfolder, offline=True)
        assert found == folder.parent  # the repository, whatever part of it was asked for
    assert set(open_checkpoint(found / "transformer")) == {"a"}
    assert resolve(folder) == folder


def test_a_name_that_is_nowhere_says_what_was_tried(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsError, match="no such folder, and not to be had from the Hugging Face hub") as caught:
        resolve("nobody/nothing", offline=True)
    assert str(caught.value).startswith("nobody/nothing") and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("/no/such/folder", "correct the path"),
        ("~/no/such/folder", "correct the path"),
        ("./nobody/nothing", "correct the path"),
        ("nothing", "correct the path"),
        (Path("nobody/nothing"), "correct the path"),
        ("models/UAE", "`hf download OWNER/NAME --local-dir models/UAE`"),
        ("runs/captioner/model", "`uae train --workdir runs/captioner` leaves one there"),
    ],
)
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name, remedy, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    with pytest.raises(WeightsError, match=f"^{name}: no such folder, wanted a UAE checkpoint") as caught:
        resolve(name)
    assert remedy in str(caught.value)


def test_unknown_architectures_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, toy.NAME, toy.ARCHITECTURE)
    write_json(tmp_path / "config.json", {"architectures": ["ToyModle"]})
    with pytest.raises(
        WeightsError, match=f"{tmp_path}: unknown architecture 'ToyModle', nearest is 'ToyModel'; known"
    ):
        load_pretrained(tmp_path)
    for value in ({}, {"architectures": []}, {"architectures": [3]}, {"architectures": {"a": 1}}, {"architectures": 3}):
        write_json(tmp_path / "config.json", value)
        with pytest.raises(WeightsError, match="names no architecture, wanted 'architectures' or '_class_name'"):
            load_pretrained(tmp_path)


# Writing.


def written(folder, tensors, **options):
    arrays = {key: np.asarray(value) for key, value in tensors.items()}
    shapes = {key: (array.shape, array.dtype) for key, array in arrays.items()}
    write_checkpoint(folder, checkpoint.MODEL, shapes, arrays.__getitem__, **options)
    return {file.name for file in folder.iterdir()}


def test_shards_are_cut_by_size_and_named_like_transformers(tmp_path):
    tensors = {f"t{i}": np.full(4, i, np.float32) for i in range(5)}  # 16 bytes each
    names = written(tmp_path, tensors, max_shard_bytes=40)  # two fit, a third would make 48
    shards = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert names == {*shards, "model.safetensors.index.json"}
    stated = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert stated["metadata"]["total_size"] == 80
    assert stated["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    for key, value in open_checkpoint(tmp_path).items():
        np.testing.assert_array_equal(value.read(), tensors[key])


def test_a_tensor_larger_than_a_shard_gets_one_of_its_own(tmp_path):
    names = written(tmp_path, {"a": np.zeros(1, np.float32), "b": np.zeros(99, np.float32)}, max_shard_bytes=8)
    assert len(names) == 3
    assert set(open_checkpoint(tmp_path)) == {"a", "b"}


def test_mixed_dtypes_are_aligned(tmp_path):
    # 3 bfloat16 are 6 bytes; a float32 behind them would stand at byte 6, where no reader can map one.
    tensors = {"half": np.ones(3, ml_dtypes.bfloat16), "whole": np.arange(2, dtype=np.float32)}
    assert written(tmp_path, tensors) == {"model.safetensors"}
    data = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert header["whole"]["data_offsets"] == [0, 8] and header["half"]["data_offsets"] == [8, 14]
    for key, tensor in open_checkpoint(tmp_path).items():
        assert tensor.read().tobytes() == tensors[key].tobytes()


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"
    with pytest.raises(KeyboardInterrupt), NewFolder(target) as folder:
        (folder / "half").write_text("x")
        assert not target.exists()
        raise KeyboardInterrupt
    assert not target.exists() and not any((tmp_path / "deep").iterdir())
    with NewFolder(target) as folder:
        (folder / "whole").write_text("x")
    assert {file.name for file in target.iterdir()} == {"whole"}
    assert {file.name for file in target.parent.iterdir()} == {"model"}


def test_an_interrupted_replacement_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    write_json(target / "config.json", {"model_type": "x"})
    with pytest.raises(RuntimeError), NewFolder(target, force=True) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert read_json(target / "config.json") == {"model_type": "x"}


def test_a_failing_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    write_json(target / "config.json", {"model_type": "x"})
    rename = type(target).rename

    def failing(self, to):
        if self.name.endswith(".part"):
            raise OSError("disk gone")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", failing)
    with pytest.raises(OSError, match="disk gone"), NewFolder(target, force=True):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    assert read_json(target / "config.json") == {"model_type": "x"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # as NumPy and Python raise it
        ValueError("RESOURCE_EXHAUSTED: Error writing \"a/0\": No space left on device [os_error_code='28']"),  # Orbax
    ],
    ids=["python", "orbax"],
)
def test_a_full_disk_is_told_with_the_folder_that_was_asked_for(tmp_path, error):
    target = tmp_path / "model"
    with pytest.raises(OSError) as raised, NewFolder(target), NewFolder(target.parent / "part"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(target))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_put_right(tmp_path, caplog):
    target = tmp_path / "model"
    part = tmp_path / ".model.0123abcd.part"
    (part / "half").mkdir(parents=True)
    others = [tmp_path / ".model.mine.part", tmp_path / ".model2.0123abcd.part", tmp_path / "x.old"]
    for other in others:
        other.mkdir()
    with NewFolder(target) as writing:
        assert not part.exists()
        NewFolder(target).check()
        assert writing.is_dir()  # is held
        with NewFolder(writing / "part") as inner:  # as a model of several parts is written
            (inner / "a").write_text("x")
        (writing / "config.json").write_text('{"model_type": "x"}')
    assert {file.name for file in tmp_path.iterdir()} == {"model", *(other.name for other in others)}
    # Between the two renames: the old model has gone, and the new one has not come.
    target.rename(tmp_path / ".model.0123abcd.old")
    part.mkdir()
    with pytest.raises(FileExistsError):
        NewFolder(target).check()
    assert "model: brought back from .model.0123abcd.old" in caplog.text
    assert read_json(target / "config.json") == {"model_type": "x"}
    # After the second one: nothing but removing it was left to do.
    (tmp_path / ".model.0123abcd.old").mkdir()
    NewFolder(target, force=True).check()
    assert {file.name for file in tmp_path.iterdir()} == {"model", *(other.name for other in others)}


def test_a_disk_without_locks_can_be_written_to_and_nothing_is_removed_there(tmp_path, monkeypatch):
    def flock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / ".model.0123abcd.part").mkdir()
    with NewFolder(tmp_path / "model") as folder:
        (folder / "a").write_text("x")
    assert {file.name for file in tmp_path.iterdir()} == {"model", ".model.0123abcd.part"}


def test_an_existing_folder_is_kept_without_force_and_an_empty_one_is_used(tmp_path):
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "config.json").write_text('{"model_type": "x"}')
    with NewFolder(empty) as folder:
        (folder / "a").write_text("x")
    assert (empty / "a").exists()
    with pytest.raises(FileExistsError, match="choose another folder, or force to replace it"), NewFolder(full):
        pytest.fail("must be refused on entry, before any work is done")
    assert [file.name for file in full.iterdir()] == ["config.json"]


MODELS = [
    ("config.json", {"model_type": "clip"}),
    ("config.json", {"_class_name": "AutoencoderKL"}),
    ("model_index.json", {"_class_name": "Pipeline"}),
    ("adapter_config.json", {"peft_type": "LORA"}),
    ("native.json", {"architecture": "x", "format": 1}),
    ("uae.json", {"encoder_lora": True, "format": 1}),
]


@pytest.mark.parametrize(("name", "content"), MODELS)
def test_force_replaces_a_model(tmp_path, name, content):
    target = tmp_path / "model"
    target.mkdir()
    write_json(target / name, content)
    with NewFolder(target, force=True) as folder:
        (folder / "new").write_text("x")
    assert {file.name for file in tmp_path.rglob("*")} == {"model", "new"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".bashrc", ""),  # a home directory
        ("thesis.tex", "x"),
        ("config.json", '{"theme": "dark"}'),  # some other program's
        ("config.json", "not JSON"),
        ("package.json", '{"model_type": "x"}'),
    ],
)
def test_force_never_replaces_what_is_no_model(tmp_path, name, text):
    target = tmp_path / "home"
    target.mkdir()
    (target / name).write_text(text)
    with pytest.raises(FileExistsError, match="is not replaced, even by force"), NewFolder(target, force=True):
        pytest.fail("must be refused on entry")
    assert (target / name).read_text() == text
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(FileExistsError, match="is not replaced"), NewFolder(file, force=True):
        pytest.fail("must be refused on entry")
    assert file.read_text() == "x"


def test_a_folder_that_fills_while_the_work_is_done_is_kept(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(FileExistsError), NewFolder(target):
        target.mkdir()
        (target / "someone_elses").write_text("x")
    assert {file.name for file in tmp_path.rglob("*")} == {"model", "someone_elses"}


def test_a_link_to_another_disk_stays_a_link(tmp_path):
    disk, link = tmp_path / "disk", tmp_path / "link"
    disk.mkdir()
    link.symlink_to(disk)
    with NewFolder(link) as folder:
        assert folder.parent == tmp_path and folder.name.startswith(".disk.")
        (folder / "a").write_text("x")
    assert link.is_symlink() and (disk / "a").exists()
