"""Damaged checkpoints: noticed whatever the damage, named, set aside, and the next older one taken."""

import errno
import shutil

import numpy as np
import pytest

from tests.training.checkpoint_states import abstract, bits, names, saved, values
from uae_jax.training import checkpoint_folder, manifest
from uae_jax.training.checkpoints import CheckpointError, CheckpointStore


def flipped(at):
    def mutate(data, other):
        position = int(at * (len(data) - 1))
        return data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :]

    return mutate


MUTATIONS = {
    "truncated": lambda data, other: data[: len(data) // 2],
    "emptied": lambda data, other: b"",
    "deleted": lambda data, other: None,
    "flipped at the start": flipped(0.0),
    "flipped in the middle": flipped(0.5),
    "flipped at the end": flipped(1.0),
    "appended to": lambda data, other: data + b"\x00\xff",
    "another checkpoint's": lambda data, other: other,
}


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    saved(folder, 10, 20)
    return folder


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same_role(name, other):
    """Whether two checkpoints' files correspond: Orbax names files of data ("d/") at random."""
    (folder, _, last), (other_folder, _, other_last) = name.rpartition("/"), other.rpartition("/")
    return folder == other_folder and (last == other_last or folder.endswith("d"))


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_damage_to_any_file_is_named_and_the_older_checkpoint_taken(tmp_path, two_checkpoints, mutation, caplog):
    files = files_of(two_checkpoints / "00000020")
    # The four of this package, and Orbax's: a change that silently stored less would show here.
    assert {"manifest.json", "record.json", "leaves.json", "arrays/_METADATA"} <= set(files)
    assert len(files) >= 8
    older = files_of(two_checkpoints / "00000010")
    for number, name in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(two_checkpoints, folder)
        file = folder / "00000020" / name
        data = file.read_bytes()
        twin = next(other for other in older if same_role(other, name))
        changed = MUTATIONS[mutation](data, (folder / "00000010" / twin).read_bytes())
        if changed == data:
            continue  # both checkpoints have the same, say the list of leaves: no damage
        if changed is None:
            file.unlink()
        else:
            file.write_bytes(changed)
        caplog.clear()
        store = CheckpointStore(folder)
        restored = store.restore(abstract(values(0)))
        assert restored.step == 10, name
        assert bits(restored.state) == bits(values(10)), name
        assert restored.record == {"step": 10}
        assert f"damaged, now named 00000020.corrupt: {name}: " in caplog.text
        assert "going on from step 10" in caplog.text
        assert names(folder) == ["00000010", "00000020.corrupt"]


def test_no_flipped_bit_of_two_hundred_goes_unnoticed(tmp_path, two_checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    checkpoint = checkpoint_folder.CheckpointFolder(folder, "").at(20)
    assert manifest.problems(checkpoint, 20) == []
    rng = np.random.default_rng(0)
    files = [name for name in files_of(folder / "00000020") if name != "manifest.json"]
    for _ in range(200):
        name = files[rng.integers(len(files))]
        data = bytearray((checkpoint / name).read_bytes())
        bit = int(rng.integers(8 * len(data)))
        data[bit // 8] ^= 1 << bit % 8
        (checkpoint / name).write_bytes(data)
        assert [line.split(":")[0] for line in manifest.problems(checkpoint, 20)] == [name]
        data[bit // 8] ^= 1 << bit % 8
        (checkpoint / name).write_bytes(data)


def test_no_flipped_bit_of_the_manifest_changes_what_is_restored(tmp_path, two_checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    checkpoint = checkpoint_folder.CheckpointFolder(folder, "").at(20)
    data = (checkpoint / "manifest.json").read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        (checkpoint / "manifest.json").write_bytes(changed)
        found = manifest.problems(checkpoint, 20)
        # Space for space is no damage; all else is.
        assert found or bytes(changed).split() == data.split() or chr(changed[position]).isspace()


def test_a_checkpoint_under_another_name_is_damaged(tmp_path, two_checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    (folder / "00000020").rename(folder / "00000030")
    restored = CheckpointStore(folder).restore(abstract(values(0)))
    assert restored.step == 10
    assert names(folder) == ["00000010", "00000030.corrupt"]


def test_a_step_asked_for_is_given_or_refused(tmp_path, two_checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    (folder / "00000010" / "record.json").unlink()
    store = CheckpointStore(folder)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15; there are \[10, 20\]"):
        store.restore(abstract(values(0)), step=15)
    with pytest.raises(CheckpointError, match=r"00000010: damaged: record\.json: missing; take another"):
        store.restore(abstract(values(0)), step=10)
    assert names(folder) == ["00000010", "00000020"]


def test_all_damaged_is_an_error_and_stays_one(tmp_path, two_checkpoints):
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    (folder / "00000010" / "leaves.json").write_text("{}")
    (folder / "00000020" / "manifest.json").unlink()
    for _ in range(2):  # started once more, the run must not find an empty folder and begin anew
        with pytest.raises(
            CheckpointError, match=r"no intact checkpoint, only 000000.0.corrupt, 000000.0.corrupt; bring"
        ):
            CheckpointStore(folder).restore(abstract(values(0)))
    assert names(folder) == ["00000010.corrupt", "00000020.corrupt"]


def test_damaged_ones_of_one_step_get_names_of_their_own(tmp_path):
    saved(tmp_path, 1, 2)
    for _ in range(2):
        (tmp_path / "00000002" / "record.json").write_text("")
        store = CheckpointStore(tmp_path)
        assert store.restore(abstract(values(0))).step == 1
        store.save(2, values(2), {})
        store.close()
    assert names(tmp_path) == ["00000001", "00000002", "00000002.corrupt", "00000002.corrupt-2"]


def test_what_cannot_be_read_for_now_is_not_set_aside(tmp_path, monkeypatch):
    store = saved(tmp_path, 1, 2)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(manifest, "_entry", refused)
    with pytest.raises(CheckpointError, match=r"00000002: cannot be read: .*Permission denied"):
        store.restore(abstract(values(0)))
    assert names(tmp_path) == ["00000001", "00000002"]


def test_a_bad_sector_is_damage(tmp_path, monkeypatch):
    store = saved(tmp_path, 1, 2)
    entry = manifest._entry

    def read(file, durable=False):
        if "00000002" in str(file) and file.name == "leaves.json":
            raise OSError(errno.EIO, "Input/output error")
        return entry(file, durable)

    monkeypatch.setattr(manifest, "_entry", read)
    assert store.restore(abstract(values(0))).step == 1
