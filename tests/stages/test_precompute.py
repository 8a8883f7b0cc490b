"""Latents and hidden states computed beforehand: the same loss as without, parts that go on where they stopped."""

import dataclasses

import jax
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("grain")

from PIL import Image

from tests.stages import running
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.data.records import Sample
from uae_jax.data.sources import open_source
from uae_jax.stages import precompute
from uae_jax.stages.precompute import EncodeSettings, encode_dataset
from uae_jax.stages.pretrain import Pretrain
from uae_jax.stages.pretrain_settings import PretrainSettings
from uae_jax.weights import uae

pytestmark = pytest.mark.slow

CAPTIONS = ("a red circle", "two squares", "a cat", "night", "grass")
NEGATIVE = "blur"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five captioned images of one size, and one that is none."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(caption)
    (root / "5.png").write_bytes(b"no image")
    (root / "5.txt").write_text("nothing")
    return root


@pytest.fixture(scope="module")
def data(folder):
    return DataConfig(sources=(SourceConfig(path=str(folder)),), resolution=64)


@pytest.fixture(scope="module")
def settings(uae_checkpoint):
    return EncodeSettings(
        model=str(uae_checkpoint[0]),
        negative=NEGATIVE,
        token_bucket=32,
        batch_size=2,
        part=2,
        max_tokens=11,
        dtype="float32",
    )


@pytest.fixture(scope="module")
def encoded(data, settings, tmp_path_factory):
    """(file, tally)."""
    file = tmp_path_factory.mktemp("encoded") / "all.arrayrecord"
    return file, encode_dataset(data, settings, file, mesh=running.one_device())


def records(file):
    source = open_source(SourceConfig(path=str(file)))
    return [source[i] for i in range(len(source))]


def test_every_good_record_is_there(encoded):
    file, tally = encoded
    assert [record.captions["caption_0"] for record in records(file)] == list(CAPTIONS)
    assert (tally.used, tally.bad) == (5, 1)
    assert tally.converted["cut"].count == 1  # "a red circle" has 12 bytes, a token each
    assert not file.with_name(f"{file.name}.parts").exists()


def test_the_loss_is_that_of_images_and_text(encoded, folder, settings):
    train = PretrainSettings(
        model=settings.model, negative=NEGATIVE, max_tokens=11, token_bucket=32, drop=0.5, posterior="sample"
    )
    pixels = [np.asarray(Image.open(folder / f"{i}.png")) for i in range(len(CAPTIONS))]
    plain = [
        Sample(str(i), image, caption, "txt") for i, (image, caption) in enumerate(zip(pixels, CAPTIONS, strict=True))
    ]
    loss, _, gradient = running.start(Pretrain(train))(plain)
    stored = [
        Sample(record.id, None, record.captions["caption_0"], "caption_0", record.arrays)
        for record in records(encoded[0])
    ]
    run = running.start(Pretrain(dataclasses.replace(train, precomputed=True)))
    assert "encoder" not in run.parts.frozen
    assert "encoder" not in run.parts.frozen["vae"]
    other, _, same = run(stored)
    assert other == pytest.approx(loss, rel=1e-6)
    assert running.difference(same, gradient) < 1e-5

    with pytest.raises(ValueError, match=r"0: no array 'latents', but settings.precomputed is true"):
        run.stage.collate(plain)
    short = {name: x[:5] if name.startswith("context") else x for name, x in stored[0].arrays.items()}
    with pytest.raises(ValueError, match="5 hidden states, wanted at least"):
        run.stage.collate([dataclasses.replace(stored[0], arrays=short)])


def test_what_was_encoded_with_other_models_is_refused(encoded, settings, uae_checkpoint, tmp_path):
    """Their widths are the same, and the loss falls as well; what is painted in the end is wrong."""
    file = encoded[0]
    read = DataConfig(sources=(SourceConfig(path=str(file)),), resolution=0)

    def load(model):
        stage = Pretrain(PretrainSettings(model=str(model), negative=NEGATIVE, precomputed=True))
        stage.look_at_data([read])
        running.start(stage)

    load(uae_checkpoint[0])
    weights = uae.load(uae_checkpoint[0])
    vae = jax.tree.map(lambda x: x, weights.vae.params)
    vae["encoder"]["conv_in"]["bias"] = vae["encoder"]["conv_in"]["bias"].at[0].add(1e-3)
    other = dataclasses.replace(weights, vae=dataclasses.replace(weights.vae, params=vae))
    uae.save_published(other, tmp_path / "other")
    with pytest.raises(ValueError, match=r"all\.arrayrecord: was encoded with another vae than the model has"):
        load(tmp_path / "other")
    uae.save_native(weights, tmp_path / "same")  # the same numbers in other files
    load(tmp_path / "same")


def test_a_run_that_was_interrupted_goes_on(encoded, data, settings, tmp_path, monkeypatch):
    file = tmp_path / "all.arrayrecord"
    seen = []

    def stop(count):
        seen.append(count)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(data, settings, file, mesh=running.one_device(), progress=stop)
    parts = file.with_name(f"{file.name}.parts")
    assert [path.name for path in sorted(parts.glob("*.json"))] == ["000000.json", "models.json", "settings.json"]
    with pytest.raises(ValueError, match="begun with other settings"):
        encode_dataset(data, dataclasses.replace(settings, seed=1), file)

    done = []
    tally = encode_dataset(data, settings, file, mesh=running.one_device(), progress=done.append)
    assert done[0] == 2  # the finished part, at once
    assert tally.to_json() == encoded[1].to_json()
    for one, other in zip(records(file), records(encoded[0]), strict=True):
        assert one.id == other.id
        for name, array in one.arrays.items():
            np.testing.assert_array_equal(array, other.arrays[name])
    with pytest.raises(FileExistsError, match="would be overwritten"):
        encode_dataset(data, settings, file)


def test_numbers_that_do_not_fit_are_refused(settings):
    encoder = precompute.DatasetEncoder.__new__(precompute.DatasetEncoder)
    encoder.settings = dataclasses.replace(settings, dtype="float16")
    with pytest.raises(ValueError, match="does not fit float16; take dtype 'bfloat16'"):
        encoder._stored(np.asarray([7e4], np.float32))


def test_settings_that_cannot_be_are_refused(settings, data, tmp_path):
    with pytest.raises(ValueError, match="captions is 0"):
        dataclasses.replace(settings, captions=0)
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        dataclasses.replace(settings, dtype="float8")
    with pytest.raises(ValueError, match="resolution is 0"):
        encode_dataset(dataclasses.replace(data, resolution=0), settings, tmp_path / "x.arrayrecord")
    for change in ({"flip": 0.5}, {"crop": "random"}):
        with pytest.raises(ValueError, match="wanted 0 and 'center', for each image is stored once"):
            encode_dataset(dataclasses.replace(data, **change), settings, tmp_path / "x.arrayrecord")
