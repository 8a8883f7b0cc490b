"""What is missing is told before a model is built, and before anything is written."""

import dataclasses
import shutil

import numpy as np
import pytest

from tests.training import test_loop
from tests.training.test_loop import toy_stage  # noqa: F401
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.parallel.mesh import make_mesh
from uae_jax.rewards.reconstruction import RewardPart
from uae_jax.stages import autoencoder, gen_for_understanding, pretrain, understanding_for_gen
from uae_jax.stages.towers import TowerConfig
from uae_jax.training import inputs, loop
from uae_jax.weights import checkpoint

TINY = checkpoint.EMBEDDED / "tiny"
TRAINED = TowerConfig(mode="lora")


def source(path, **changes):
    return DataConfig((SourceConfig(str(path), **changes),), resolution=16, with_captions=False)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"picture": "a.png", "text": "a"}\n')
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize("field", ["data", "validation"])
@pytest.mark.parametrize(
    ("path", "message"),
    [("/nosuch", "/nosuch: nothing there"), ("TABLE", "no image column 'image', the nearest is 'picture'")],
)
def test_data_is_opened_before_models(field, path, message, table, tmp_path, monkeypatch):
    monkeypatch.setattr(test_loop.toy.Toy, "load", None)
    wrong = {field: source(table if path == "TABLE" else path)}
    with pytest.raises(ValueError, match=message):
        loop.train(test_loop.experiment(**wrong), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_run_needs_no_data(tmp_path, monkeypatch):
    run = test_loop.experiment(steps=1, validation=None)
    loop.train(run, tmp_path)
    monkeypatch.setattr(loop, "open_inputs", None)
    loop.train(run, tmp_path)


def test_a_finished_run_needs_no_checkpoints(tmp_path, monkeypatch, capsys):
    run = test_loop.experiment(steps=2, validation=None)
    loop.train(run, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")  # to have the room
    told = (tmp_path / "metrics.jsonl").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(test_loop.toy.Toy, "load", None)  # nothing is loaded to find that out
        assert loop.train(run, tmp_path) == tmp_path / "model"
    assert "done already" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == told
    loop.train(dataclasses.replace(run, steps=3), tmp_path)  # made longer, it has to begin anew, and says so
    assert "begins anew: there are readings up to step 2 and no checkpoint" in capsys.readouterr().err
    assert (tmp_path / "metrics.before.jsonl").read_text() == told


STAGES = [
    (pretrain.Pretrain, {"model": "runs/none/model"}, "settings.model"),
    (pretrain.Pretrain, {"model": "new:tiny", "encoder_from": "runs/none/model"}, "settings.encoder_from"),
    (pretrain.Pretrain, {"model": "new:tiny", "vae_from": "runs/none/model"}, "settings.vae_from"),
    (autoencoder.Autoencoder, {"model": "runs/none/model"}, "settings.model"),
    (
        gen_for_understanding.GenForUnderstanding,
        {"encoder": TRAINED, "reward": (RewardPart("clip"), RewardPart("longclip", 0.0, "runs/none/model"))},
        "reward 'longclip'",
    ),
]


@pytest.mark.parametrize(("stage", "settings", "named"), STAGES)
def test_every_model_is_looked_for_and_none_is_read(stage, settings, named, monkeypatch):
    monkeypatch.setattr(np, "fromfile", None)  # by which tensors are read
    made = stage(stage.Settings(**settings))
    with pytest.raises(ValueError, match=f"{named}: runs/none/model: no such folder"):
        inputs.open_inputs(captioned(), made, make_mesh(data=-1))


def captioned(data=True, validation=True):
    run = test_loop.experiment()
    given = {"data": data, "validation": validation}
    read = {name: dataclasses.replace(getattr(run, name), with_captions=value) for name, value in given.items()}
    return dataclasses.replace(run, **read)


@pytest.mark.parametrize("name", ["data", "validation"])
def test_a_stage_that_reads_captions_is_not_begun_without(name):
    without, mesh = captioned(**{name: False}), make_mesh(data=-1)
    stage = understanding_for_gen.UnderstandingForGen
    settings = stage.Settings(decoder=TRAINED, captions="data")
    with pytest.raises(ValueError, match=f"{name}.with_captions is False, .* --config.{name}.with_captions=true"):
        inputs.open_inputs(without, stage(settings), mesh)
    inputs.open_inputs(captioned(), stage(settings), mesh)
    inputs.open_inputs(without, stage(dataclasses.replace(settings, captions="own")), mesh)
    encoded = pretrain.PretrainSettings(model="tiny", precomputed=True)
    inputs.open_inputs(without, pretrain.Pretrain(encoded), mesh)


def test_what_is_there_is_found(monkeypatch):
    monkeypatch.setattr(np, "fromfile", None)  # by which tensors are read
    settings = pretrain.PretrainSettings(model="tiny", encoder_from="tiny", vae_from=str(TINY / "SD3/vae"))
    pretrain.Pretrain(settings).look_for_models()
    gen_for_understanding.GenForUnderstanding(
        gen_for_understanding.GenForUnderstanding.Settings(encoder=TRAINED)
    ).look_for_models()
