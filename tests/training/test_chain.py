"""Stages one after the other, of a stage that takes no time."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.training import test_loop, toy
from uae_jax.data.config import DataConfig, SourceConfig
from uae_jax.stages import registry
from uae_jax.training import chain, loop


@pytest.fixture(autouse=True)
def toy_stage(monkeypatch):
    monkeypatch.setattr(registry, "find", lambda name: toy.Toy)


def test_stages_follow_each_other(tmp_path):
    first, second = (
        test_loop.experiment(steps=2),
        test_loop.experiment(steps=3, settings=toy.Settings(model="previous")),
    )
    folders = chain.train_stages([("one", first), ("two", second)], tmp_path)
    assert folders == [tmp_path / "1_one/model", tmp_path / "2_two/model"]
    assert test_loop.result(folders[1])["from"] == str(folders[0])
    third = test_loop.experiment(steps=2, settings=toy.Settings(model="previous:one"))
    folders = chain.train_stages([("one", first), ("two", second), ("three", third)], tmp_path)
    assert test_loop.result(folders[2])["from"] == str(folders[0])
    with pytest.raises(ValueError, match="'previous:tow', but there are one"):
        chain.train_stages(
            [("one", first), ("two", test_loop.experiment(settings=toy.Settings(model="previous:tow")))], tmp_path
        )
    with pytest.raises(ValueError, match="no stage comes before"):
        chain.train_stages([("two", second)], tmp_path / "other")


def test_a_list_of_stages_may_be_moved(tmp_path, monkeypatch):
    stages = [
        ("one", test_loop.experiment(steps=2)),
        ("two", test_loop.experiment(steps=3, settings=toy.Settings(model="previous"))),
    ]
    chain.train_stages(stages, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    longer = [stages[0], ("two", dataclasses.replace(stages[1][1], steps=5))]
    chain.train_stages(longer, Path("there"))  # by another path, too
    assert [line["step"] for line in test_loop.history(tmp_path / "there/2_two")][-1] == 5
    record = json.loads((tmp_path / "there/2_two/config.json").read_text())
    assert record["settings"]["model"] == "../1_one/model"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": DataConfig((SourceConfig("/nosuch"),), with_captions=False)}, "second: /nosuch: nothing there"),
        ({"batch_size": 6, "accumulate": 4}, "second: batch_size is 6"),
        ({"settings": toy.Settings(model="previous", width=0)}, "second: width is 0"),
        (
            {"settings": toy.Settings(model="previous:tow")},
            "second: settings.model is 'previous:tow', but there are first",
        ),
    ],
)
def test_what_a_later_stage_lacks_is_told_before_the_first(wrong, message, tmp_path, monkeypatch):
    begun = toy.Toy.__init__

    def checked(self, settings, seed=0):
        if settings.width < 1:
            raise ValueError(f"width is {settings.width}")
        assert "previous" not in settings.model
        begun(self, settings, seed)

    monkeypatch.setattr(toy.Toy, "__init__", checked)
    follows = test_loop.experiment(settings=toy.Settings(model="previous"))
    with pytest.raises(ValueError, match=message):
        chain.train_stages(
            [("first", test_loop.experiment()), ("second", dataclasses.replace(follows, **wrong))], tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_what_the_first_stage_began_from_is_needed_no_more_once_it_is_done(tmp_path, monkeypatch):
    looked_for = []
    monkeypatch.setattr(toy.Toy, "look_for_models", lambda self: looked_for.append(self.settings.model))
    base = tmp_path / "base"
    base.mkdir()
    first = test_loop.experiment(steps=2, settings=toy.Settings(model=str(base)))
    last = test_loop.experiment(steps=2, settings=toy.Settings(model="previous"))
    stages = [("first", first), ("second", last), ("third", last)]
    chain.train_stages(stages, tmp_path)
    result = str(tmp_path / "1_first/model")
    assert looked_for == [str(base)] * 3 + [
        result,
        str(tmp_path / "2_second/model"),
    ]  # ahead, of two; then each its own
    shutil.rmtree(tmp_path / "3_third")
    base.rmdir()
    looked_for.clear()
    chain.train_stages(stages, tmp_path)
    assert looked_for == [str(tmp_path / "2_second/model")]


def test_an_untrained_chain_goes_back_to_its_first_model():
    settings = [("a", "tiny"), ("b", "previous"), ("c", "other"), ("d", "previous:b"), ("e", "previous")]
    stages = [(name, test_loop.experiment(settings=toy.Settings(model=model))) for name, model in settings]
    assert [begun.settings.model for _, begun in chain.untrained(stages)] == ["tiny", "tiny", "other", "tiny", "tiny"]


def test_told_to_stop_while_a_result_is_written_no_other_stage_begins(tmp_path, monkeypatch):
    save = toy.Toy.save

    def told(*arguments):
        save(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    stages = [("first", test_loop.experiment(steps=3)), ("second", test_loop.experiment(steps=3))]
    with monkeypatch.context() as patch:
        patch.setattr(toy.Toy, "save", told)
        with pytest.raises(loop.Stopped, match="first: told to stop, and done"):
            chain.train_stages(stages, tmp_path)
    assert (tmp_path / "1_first/model/toy.json").is_file() and not (tmp_path / "2_second").exists()
    chain.train_stages(stages, tmp_path)
    assert (tmp_path / "2_second/model/toy.json").is_file()


def test_a_stage_that_failed_to_start_may_begin_from_another_result(tmp_path, monkeypatch):
    stages = lambda first: [  # noqa: E731
        ("first", test_loop.experiment(steps=first)),
        ("second", test_loop.experiment(steps=3, settings=toy.Settings(model="previous"))),
    ]

    def fails(self, mesh):
        if self.settings.model:
            raise ValueError("no")
        return load(self, mesh)

    load = toy.Toy.load
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="no"):
        patch.setattr(toy.Toy, "load", fails)
        chain.train_stages(stages(3), tmp_path)
    assert (tmp_path / "2_second/began_from.json").exists()
    chain.train_stages(stages(5), tmp_path)


def test_what_follows_a_stage_does_not_go_on_from_another_result_of_it(tmp_path):
    stages = lambda first: [  # noqa: E731
        ("first", test_loop.experiment(steps=first)),
        ("second", test_loop.experiment(steps=3, settings=toy.Settings(model="previous"))),
    ]
    chain.train_stages(stages(3), tmp_path)
    chain.train_stages(stages(3), tmp_path)
    with pytest.raises(ValueError, match=r"2_second: began from .*1_first as of step 3, which is of step 5 now"):
        chain.train_stages(stages(5), tmp_path)
    shutil.rmtree(tmp_path / "2_second")
    chain.train_stages(stages(5), tmp_path)


def test_a_run_knows_of_which_step_the_result_was_that_it_began_from(tmp_path):
    first = test_loop.experiment(steps=3)
    (model,) = chain.train_stages([("one", first)], tmp_path / "first")
    second = [("two", test_loop.experiment(steps=3, settings=toy.Settings(model=str(model))))]
    chain.train_stages(second, tmp_path / "second")
    chain.train_stages(second, tmp_path / "second")
    chain.train_stages([("one", dataclasses.replace(first, steps=5))], tmp_path / "first")
    with pytest.raises(ValueError, match=r"began from .*first as of step 3, which is of step 5 now; remove .*second"):
        chain.train_stages(second, tmp_path / "second")
    chain.train_stages(second, tmp_path / "third")
    shutil.rmtree(tmp_path / "first")  # what is done needs it no more
    chain.train_stages(second, tmp_path / "third")


def test_a_run_does_not_go_on_from_other_weights(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    rng = np.random.default_rng(0)
    weights = rng.bytes(2**25)  # so large that pieces of it count
    (base / "model.safetensors").write_bytes(weights)
    run = test_loop.experiment(steps=3, settings=toy.Settings(model=str(base)))
    chain.train_stages([("one", run)], tmp_path / "run")
    longer = [("one", dataclasses.replace(run, steps=5))]
    (base / "README.md").write_text("says more now")
    shutil.copytree(base, tmp_path / "copy")  # other dates, and the same
    shutil.rmtree(base)
    (tmp_path / "copy").rename(base)
    chain.train_stages(longer, tmp_path / "run")
    (base / "model.safetensors").write_bytes(rng.bytes(2**25))
    with pytest.raises(ValueError, match=r"began from .*base, which holds other weights or settings now; .*began_from"):
        chain.train_stages([("one", dataclasses.replace(run, steps=7))], tmp_path / "run")
    (tmp_path / "run/began_from.json").unlink()
    chain.train_stages([("one", dataclasses.replace(run, steps=7))], tmp_path / "run")
