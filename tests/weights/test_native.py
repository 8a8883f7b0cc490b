"""The native format: what is saved on one mesh comes back bit for bit on another, and wrong folders are told apart."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from tests.weights import toy
from uae_jax.parallel.mesh import make_mesh
from uae_jax.weights import native, registry
from uae_jax.weights.architecture import Pretrained
from uae_jax.weights.checkpoint import open_checkpoint, read_json, write_json
from uae_jax.weights.errors import WeightsError
from uae_jax.weights.native import config_from_plain, load_native, save_native
from uae_jax.weights.pretrained import load_pretrained, save_pretrained

CONFIG = toy.ToyConfig(depth=2, scaling=toy.Scaling(1e-5, 0.1), sides=(4, 6))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, toy.NAME, toy.ARCHITECTURE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model and its native folder; nobody may change them."""
    model = Pretrained(toy.ARCHITECTURE, CONFIG, toy.params(CONFIG))
    folder = tmp_path_factory.mktemp("native") / "model"
    save_native(model, folder)
    return model, folder


def copy_of(folder, to):
    return shutil.copytree(folder, to)


def same_bytes(one, two):
    one, two = (traverse_util.flatten_dict(tree, sep="/") for tree in (one, two))
    assert one.keys() == two.keys()
    for path in one:
        a, b = np.asarray(one[path]), np.asarray(two[path])
        assert (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes(), path


@pytest.mark.slow
def test_one_device_to_eight_and_back_is_bit_identical(saved, tmp_path):
    model, folder = saved
    mesh = make_mesh(2, 2, 2)
    split = load_native(folder, mesh=mesh)
    assert split.config == CONFIG and split.architecture is toy.ARCHITECTURE
    same_bytes(split.params, model.params)
    up = split.params["layers"]["up"]["kernel"]
    assert up.sharding.mesh == mesh and {shard.data.shape for shard in up.addressable_shards} == {(2, 4, 6)}
    save_native(split, tmp_path / "again")
    whole = load_native(tmp_path / "again")
    same_bytes(whole.params, model.params)
    one = SingleDeviceSharding(jax.devices()[0])
    assert all(leaf.sharding == one for leaf in jax.tree.leaves(whole.params))


def test_dtypes_are_kept_or_cast(saved, tmp_path):
    model, folder = saved
    half = load_native(folder, dtype=jnp.bfloat16)
    same_bytes(half.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))
    save_native(half, tmp_path / "half")
    same_bytes(load_native(tmp_path / "half").params, half.params)


def test_load_pretrained_reads_either_format(saved, tmp_path):
    model, folder = saved
    seen = []
    same_bytes(load_pretrained(folder, progress=seen.append).params, model.params)
    assert sum(seen) == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    published = Pretrained(toy.ARCHITECTURE, toy.ToyConfig(), toy.params(toy.ToyConfig()))
    save_pretrained(published, tmp_path / "published")
    from_hub = load_pretrained(tmp_path / "published")
    save_native(from_hub, tmp_path / "native")
    same_bytes(load_pretrained(tmp_path / "native").params, published.params)
    # And back: published -> native -> published, byte for byte.
    save_pretrained(load_pretrained(tmp_path / "native"), tmp_path / "exported")
    one, two = (open_checkpoint(tmp_path / name) for name in ("published", "exported"))
    assert one.keys() == two.keys() and all(one[key].read().tobytes() == two[key].read().tobytes() for key in one)
    assert read_json(tmp_path / "published" / "config.json") == read_json(tmp_path / "exported" / "config.json")


def test_the_manifest_is_readable(saved):
    manifest = json.loads((saved[1] / "native.json").read_text())
    assert manifest["format"] == 1 and manifest["architecture"] == "ToyModel"
    assert manifest["config"]["scaling"] == {"epsilon": 1e-5, "gain": 0.1}
    assert manifest["config"]["sides"] == [4, 6]


def test_saving_is_whole_or_not_at_all(saved, tmp_path):
    model, folder = saved
    with pytest.raises(FileExistsError, match="choose another folder"):
        save_native(model, folder)
    target = copy_of(folder, tmp_path / "model")
    broken = dataclasses.replace(model, params={"x": object()})
    with pytest.raises(Exception, match="object"):
        save_native(broken, target, force=True)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    same_bytes(load_native(target).params, model.params)
    save_native(load_native(target, dtype=jnp.bfloat16), target, force=True)
    assert load_native(target).params["scale"].dtype == jnp.bfloat16
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def refusal(folder, **options) -> str:
    with pytest.raises(WeightsError) as caught:
        load_native(folder, **options)
    assert str(folder) in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def test_the_two_kinds_of_folder_are_told_apart(saved, tmp_path):
    model, folder = saved
    save_pretrained(model, tmp_path / "published")
    assert "is in a published layout; use load_pretrained, or `uae convert` it first" in refusal(tmp_path / "published")
    assert "no native.json in it, wanted a folder that `uae convert` wrote" in refusal(tmp_path)
    assert "no native.json in it" in refusal(tmp_path / "absent")
    with pytest.raises(WeightsError, match="holds the native format; load it with load_native, or `uae export` it"):
        open_checkpoint(folder)


MANIFESTS = [
    ({"format": 2}, "format is 2, wanted 1; convert it again"),
    ({"format": None}, "format is None, wanted 1"),
    ({"architecture": "ToyModle"}, "unknown architecture 'ToyModle', nearest is 'ToyModel'"),
    ({"architecture": 3}, "architecture is 3, wanted its name"),
    ({"config": None}, "config: is None, wanted an object"),
    ({"config": {"dpeth": 3}}, "config.dpeth: unknown; the nearest field of ToyConfig is 'depth'"),
    ({"config": {"scaling": {"epsilno": 3.0}}}, "config.scaling.epsilno: unknown; the nearest field of Scaling is"),
    ({"config": {"depth": 2.0}}, "config.depth: is 2.0, wanted an integer"),
    ({"config": {"depth": True}}, "config.depth: is True, wanted an integer"),
    ({"config": {"scaling": {"gain": "x"}}}, "config.scaling.gain: is 'x', wanted a number"),
    ({"config": {"sides": [4, "x"]}}, "config.sides[1]: is 'x', wanted an integer"),
    ({"config": {"sides": 4}}, "config.sides: is 4, wanted a list"),
    ({"config": {"depth": 0}}, "config: depth is 0, wanted at least 1"),
    # A config that is fine in itself, and not that of the arrays.
    ({"config": {"depth": 2, "width": 16}}, "shape: embed/embedding: got [10, 8], wanted [10, 16]"),
]


@pytest.mark.parametrize(("fields", "message"), MANIFESTS)
def test_wrong_manifests_are_refused(saved, tmp_path, fields, message):
    folder = copy_of(saved[1], tmp_path / "model")
    write_json(folder / "native.json", json.loads((folder / "native.json").read_text()) | fields)
    assert message in refusal(folder)


def test_missing_and_unexpected_arrays_are_listed(tmp_path):
    params = toy.params(CONFIG)
    params["extra"] = {"kernel": jnp.zeros((1, 2))}
    del params["head"], params["layers"]["norm"]
    save_native(Pretrained(toy.ARCHITECTURE, CONFIG, params), tmp_path / "model")
    message = refusal(tmp_path / "model")
    for part in (
        "missing: head/kernel [8, 6]",
        "missing: head/bias [6]",
        "missing: layers/norm/scale [2, 8]",
        "unexpected: extra/kernel [1, 2]",
    ):
        assert part in message
    assert message.count(";") == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax drops its event loop
def test_damaged_arrays_are_refused(saved, tmp_path):
    folder = copy_of(saved[1], tmp_path / "model")
    for file in sorted((folder / "params").rglob("*")):
        if file.is_file() and file.parent.name == "d":  # where the arrays' bytes are
            file.write_bytes(file.read_bytes()[:-20])
    assert "damaged" in refusal(folder)
    shutil.rmtree(folder / "params")
    assert "no Orbax checkpoint" in refusal(folder)


@pytest.mark.parametrize("name", sorted(registry.ARCHITECTURES))
def test_configs_of_all_architectures_survive_json(name):
    kind = registry.ARCHITECTURES[name].config_class
    made = [getattr(kind, method)() for method in ("tiny",) if hasattr(kind, method)]
    if not any(field.default is dataclasses.MISSING for field in dataclasses.fields(kind)):
        made.append(kind())
    for config in made:
        plain = json.loads(json.dumps(dataclasses.asdict(config)))
        assert config_from_plain(kind, plain, name) == config


def test_saving_from_several_processes_is_refused(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(native.jax, "process_count", lambda: 2)
    with pytest.raises(RuntimeError, match="convert on one host"):
        save_native(saved[0], tmp_path / "model")
