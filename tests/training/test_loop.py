"""The loop, around a stage that takes no time."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys

import jax
import pytest
from PIL import Image

from tests.compiling import compilations
from tests.training import NOT_REPEATED, toy
from uae_jax.data.config import DataConfig, ScenesConfig, SourceConfig
from uae_jax.errors import RunError
from uae_jax.stages import registry
from uae_jax.training import loop, results
from uae_jax.training.config import EMAConfig, Experiment, MeshConfig, OptimiserConfig
from uae_jax.training.metrics import read_history
from uae_jax.training.optimisers import schedule


@pytest.fixture(autouse=True)
def toy_stage(monkeypatch):
    monkeypatch.setattr(registry, "find", lambda name: toy.Toy)


def data(seed=0, **changes):
    scenes = SourceConfig(kind="scenes", scenes=ScenesConfig(count=64, seed=seed, size=16, levels=()))
    return DataConfig(sources=(scenes,), resolution=16, with_captions=False, **changes)


def experiment(**changes):
    base = Experiment(
        stage="toy",
        settings=toy.Settings(noise=0.1),
        data=data(),
        validation=data(seed=1, shuffle=False),
        optimiser=OptimiserConfig(learning_rate=0.05, warmup=2),
        ema=EMAConfig(0.9),
        steps=12,
        batch_size=8,
        log_every=3,
        evaluate_every=6,
        evaluation_batches=2,
        checkpoint_every=4,
    )
    return dataclasses.replace(base, **changes)


def result(folder):
    return json.loads((folder / "toy.json").read_text())


def history(folder):
    """Lines without what differs from run to run."""
    return [{name: value for name, value in line.items() if name not in NOT_REPEATED} for line in read_history(folder)]


def stop_after(monkeypatch, step):
    """Sends this process SIGTERM while it is at a step."""
    original = loop.Progress.step

    def step_and_signal(self, number):
        original(self, number)
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Progress, "step", step_and_signal)


def test_a_run_leaves_its_result_metrics_and_pictures(tmp_path, capsys):
    folder = loop.train(experiment(), tmp_path)
    assert folder == tmp_path / "model"
    assert result(folder)["seen"] == 12 * 8
    lines = history(tmp_path)
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [3, 4, 6, 8, 9, 12]  # every third, and with every checkpoint
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert [line["step"] for line in lines if "evaluation/loss" in line] == [6, 12]
    assert sorted(path.name for path in (tmp_path / "pictures" / "guesses").iterdir()) == [
        "00000006.png",
        "00000012.png",
    ]
    assert list((tmp_path / "tensorboard").iterdir())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000008", "00000012"]
    out, err = capsys.readouterr()
    assert out == "" and "step 12" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])  # the second keeps states of two kinds
def test_stopped_and_resumed_is_as_never_stopped(tmp_path, monkeypatch, kind):
    run = experiment(optimiser=OptimiserConfig(kind=kind, learning_rate=0.05, warmup=2))
    loop.train(run, tmp_path / "whole")
    for step in (2, 5, 9):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(loop.Stopped, match=f"step {step}"):
                loop.train(run, tmp_path / "parts")
    loop.train(run, tmp_path / "parts")
    assert result(tmp_path / "parts/model") == result(tmp_path / "whole/model")
    losses = [
        {line["step"]: line["evaluation/loss"] for line in history(tmp_path / name) if "evaluation/loss" in line}
        for name in ("whole", "parts")
    ]
    assert losses[0] == losses[1]
    steps = [line["step"] for line in history(tmp_path / "parts") if "loss" in line]
    assert len(steps) == len(set(steps))


def test_a_resumed_run_holds_no_second_state(tmp_path, monkeypatch):
    loop.train(experiment(steps=4), tmp_path)
    restore, held = loop.CheckpointStore.restore, []

    def counted(self, wanted):
        gc.collect()
        held.append(sum(array.shape == wanted.params["linear"]["kernel"].shape for array in jax.live_arrays()))
        return restore(self, wanted)

    before = sum(array.shape == (4, 2) for array in jax.live_arrays())
    monkeypatch.setattr(loop.CheckpointStore, "restore", counted)
    loop.train(experiment(), tmp_path)
    assert held == [before + 1]  # what the stage has loaded; neither moments nor an average of it


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    loop.train(experiment(), tmp_path)
    before = (tmp_path / "model/toy.json").stat().st_mtime_ns
    monkeypatch.setattr(loop.Run, "_steps", None)
    loop.train(experiment(), tmp_path)
    assert (tmp_path / "model/toy.json").stat().st_mtime_ns == before


def test_a_run_can_be_made_longer(tmp_path):
    loop.train(experiment(optimiser=OptimiserConfig(schedule="constant", warmup=2)), tmp_path)
    longer = experiment(optimiser=OptimiserConfig(schedule="constant", warmup=2), steps=15)
    loop.train(longer, tmp_path)
    assert result(tmp_path / "model")["seen"] == 15 * 8


@pytest.mark.parametrize(("steps", "told"), [(2, True), (3, False)])
def test_a_warm_up_without_end_is_told(tmp_path, capsys, steps, told):
    loop.train(experiment(steps=steps), tmp_path)
    assert ("rises over 2 updates, and there are 2: it never gets" in capsys.readouterr().err) == told


def test_a_folder_of_another_run_is_refused(tmp_path):
    loop.train(experiment(steps=3), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match=r"optimiser.warmup: 2 -> 1"):
        loop.train(experiment(steps=3, optimiser=OptimiserConfig(learning_rate=0.05, warmup=1)), tmp_path)
    assert (tmp_path / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"architectures": ["CLIPModel"]}', "config.json: not of a run of `uae train`"),
        ("config.json", "[]", "config.json: not of a run of `uae train`"),
        ("model/model.safetensors", "weights", "and no config.json that says of which run"),
        ("metrics.jsonl", '{"epoch": 1, "step": 4}\n', "and no config.json that says of which run"),
        ("checkpoints/00000500/state", "mine", "and no config.json that says of which run"),
    ],
)
def test_others_files_are_left_alone(tmp_path, file, content, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        loop.train(experiment(), tmp_path)
    assert (tmp_path / file).read_text() == content
    assert {path.name for path in tmp_path.iterdir()} == {file.split("/")[0], ".lock"}


def test_two_runs_do_not_share_a_folder(tmp_path):
    # By another process: in this one a lock is its own.
    holding = """
import pathlib, sys
from uae_jax.training import lock
with lock.held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""
    command = [sys.executable, "-c", holding, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(
            ValueError, match=rf"process {other.pid} on .* is training here; wait for it, or take another"
        ):
            loop.train(experiment(), tmp_path)
    finally:
        other.kill()  # the lock goes with it, however it ends
        other.wait()
    loop.train(experiment(steps=2), tmp_path)


def test_bad_and_converted_records_are_counted_and_told(tmp_path, capsys):
    for number in range(6):
        mode = "L" if number == 1 else "RGB"
        Image.new(mode, (16, 16), 40 * number if mode == "L" else (40 * number,) * 3).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"no image")
    folder = DataConfig((SourceConfig(str(tmp_path)),), resolution=16, with_captions=False, max_bad_fraction=0.5)
    run = experiment(data=folder, validation=None, batch_size=8, steps=2, log_every=1)
    loop.train(run, tmp_path / "run")
    counted = [line["skipped_records"] for line in history(tmp_path / "run") if "loss" in line]
    assert counted[-1] >= 1
    err = capsys.readouterr().err
    assert "records that were read" in err and "skipped    unreadable" in err


def test_told_to_stop_while_it_loads_it_does_not_begin(tmp_path, monkeypatch, capfd):
    load = toy.Toy.load

    def slow(self, mesh):
        os.kill(os.getpid(), signal.SIGTERM)
        return load(self, mesh)

    monkeypatch.setattr(toy.Toy, "load", slow)
    with pytest.raises(loop.Stopped, match="stopped before step 1"):
        loop.train(experiment(), tmp_path)
    assert "uae: told to stop" in capfd.readouterr().err


def test_a_start_that_failed_leaves_the_folder_free(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(TypeError):
        patch.setattr(toy.Toy, "load", None)
        loop.train(experiment(steps=3, settings=toy.Settings(noise=0.2)), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["noise"] == 0.2
    loop.train(experiment(steps=3), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["noise"] == 0.1
    assert "goes on with other settings" not in capsys.readouterr().err


def test_a_run_may_go_on_at_another_rate_and_says_so(tmp_path, capsys):
    loop.train(experiment(steps=3), tmp_path)
    slower = OptimiserConfig(learning_rate=0.01, warmup=2)
    loop.train(experiment(steps=5, optimiser=slower), tmp_path)
    assert (
        "goes on with other settings: optimiser.learning_rate: 0.05 -> 0.01; steps: 3 -> 5" in capsys.readouterr().err
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(line["learning_rate"] for line in lines if line["step"] > 3 and "learning_rate" in line) <= 0.01


def test_killed_while_a_longer_run_writes_its_result_it_is_written_after_all(tmp_path, monkeypatch):
    loop.train(experiment(steps=3), tmp_path)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(toy.Toy, "save", killed)
        loop.train(experiment(steps=5), tmp_path)
    assert result(tmp_path / "model")["seen"] == 3 * 8 and results.finished(tmp_path) == 3
    loop.train(experiment(steps=5), tmp_path)
    assert result(tmp_path / "model")["seen"] == 5 * 8 and results.finished(tmp_path) == 5


def test_a_folder_of_an_earlier_version_goes_on(tmp_path):
    loop.train(experiment(steps=3), tmp_path)
    file = tmp_path / "config.json"
    record = json.loads(file.read_text())
    del record["optimiser"]["kind"]  # as if it had come since; its default is what was done before
    file.write_text(json.dumps(record))
    loop.train(experiment(steps=3), tmp_path)
    assert json.loads(file.read_text())["optimiser"]["kind"] == "adamw"
    record["optimiser"]["clip_by_luck"] = 1.0  # and what it knows no more is a difference
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"optimiser.clip_by_luck: 1.0 -> \(none\)"):
        loop.train(experiment(steps=3), tmp_path)


def test_ten_bad_steps_in_a_row_end_the_run_and_name_the_samples(tmp_path, capsys):
    # 64 scenes, 8 a step, none fit: steps 1 to 4 are bad, read at step 3 and, with the checkpoint, at 4.
    bad = experiment(settings=toy.Settings(poison=0), max_nonfinite=4)
    with pytest.raises(RunError, match=r"scenes:0:\d+"):
        loop.train(bad, tmp_path)
    assert not (tmp_path / "model").exists()
    assert not list((tmp_path / "checkpoints").glob("0*"))


def test_a_bad_sample_now_and_then_is_counted_and_named(tmp_path, capsys):
    loop.train(experiment(settings=toy.Settings(poison=62)), tmp_path)  # 62 and 63: once in eight steps each
    trained = [line for line in history(tmp_path) if "loss" in line]
    assert 2 <= (refused := int(trained[-1]["nonfinite_steps"])) <= 4
    # The rate of the last update that was made: the schedule counts no other.
    rate = schedule(OptimiserConfig(learning_rate=0.05, warmup=2), 12)
    assert trained[-1]["learning_rate"] == rate(11 - refused)
    assert "scenes:0:62" in capsys.readouterr().err
    assert all(value == value for value in result(tmp_path / "model")["linear"]["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8, data=1), MeshConfig(data=4, tensor=2)])
def test_meshes_agree(tmp_path, mesh):
    # One device and eight see the same samples and the same noise; sums are taken in another order.
    one = loop.train(experiment(mesh=MeshConfig(data=8)), tmp_path / "one")
    other = loop.train(experiment(mesh=mesh), tmp_path / "other")
    for a, b in zip(jax.tree.leaves(result(one)["linear"]), jax.tree.leaves(result(other)["linear"]), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-7)


def test_nothing_is_compiled_in_the_steady_state(tmp_path, monkeypatch):
    at = {}
    original = loop.Progress.step

    with compilations() as compiled:

        def note(self, number):
            at[number] = len(compiled)
            original(self, number)

        monkeypatch.setattr(loop.Progress, "step", note)
        loop.train(experiment(steps=30, evaluate_every=6), tmp_path)
    assert at[1] > 0
    assert at[30] == at[7]  # by then it has stepped, logged, saved and evaluated once
    told = {line["step"]: line["compiled_programs"] for line in read_history(tmp_path) if "compiled_programs" in line}
    assert told[3] > 0 and not any(count for step, count in told.items() if step > 9)


@pytest.mark.slow
def test_a_profile_is_written_where_it_was_asked_for(tmp_path, capsys):
    loop.train(experiment(profile_steps=2), tmp_path)
    assert "profile of steps 4 to 5" in capsys.readouterr().err
    rows = json.loads((tmp_path / "profile/parts.json").read_text())
    assert {row["phase"] for row in rows} >= {"loss", "optimiser"}


def test_batches_must_split_evenly(tmp_path):
    with pytest.raises(ValueError, match="multiple of 16: 8 devices"):
        loop.train(experiment(accumulate=2, batch_size=24), tmp_path)
    assert not tmp_path.joinpath("config.json").exists()


def test_a_full_disk_is_told_at_its_step_and_ends_the_run_at_last(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uae_jax.training.arrays.write", full)
    with pytest.raises(RunError, match="No space left"):
        loop.train(experiment(steps=40), tmp_path)
    assert "step 4" in capsys.readouterr().err
