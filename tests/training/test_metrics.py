"""Metrics reach the file and TensorBoard once per step, whatever happens to the run in between."""

import json
import math
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.training import metrics, tensorboard
from uae_jax.training.metrics import Averages, MetricsWriter, column, read_history


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def shown(workdir, kind="scalars"):
    """What TensorBoard shows: name -> events."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(workdir / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    of = {"scalars": events.Scalars, "images": events.Images, "tensors": events.Tensors}[kind]
    return {name: of(name) for name in events.Tags()[kind]}


def test_a_line_per_reading_and_an_event_per_number(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(10, {"loss": 1.5, "accuracy": np.float32(0.25)})
        writer.scalars(20, {"loss": jnp.float32(1.25)})
    first, second = lines(tmp_path)
    assert {name: first[name] for name in ("step", "loss", "accuracy")} == {"step": 10, "loss": 1.5, "accuracy": 0.25}
    assert second.keys() == {"step", "time", "loss"} and second["time"] >= first["time"] > 1.6e9
    assert [(event.step, event.value) for event in shown(tmp_path)["loss"]] == [(10, 1.5), (20, 1.25)]
    assert writer.history == lines(tmp_path)


def test_numbers_that_json_has_not(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    [line] = [json.loads(text, parse_constant=pytest.fail) for text in (tmp_path / "metrics.jsonl").open()]
    assert (line["a"], line["b"], line["c"]) == (None, "inf", "-inf")
    history = read_history(tmp_path)
    assert column(history, "b") == [(1, math.inf)] and math.isnan(column(history, "a")[0][1])


def test_a_killed_run_loses_no_line(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.scalars(10, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [10]  # without any flush or close
    assert [event.step for event in shown(tmp_path)["loss"]] == [10]
    writer.close()


@pytest.mark.parametrize("kept", ["by the file", "by the checkpoint"])
def test_a_resumed_run_logs_each_step_once(tmp_path, kept):
    first = MetricsWriter(tmp_path)
    for step in (10, 20, 30, 40):
        first.scalars(step, {"loss": 1.0})
        if step == 20:
            history = json.loads(json.dumps(first.history))
    # Killed in the middle of a line, after the checkpoint of step 20 or any later moment before 30.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "lo')
    assert [line["step"] for line in read_history(tmp_path)] == [10, 20, 30, 40]
    with MetricsWriter(tmp_path, history if kept == "by the checkpoint" else None, step=25) as second:
        assert [line["step"] for line in lines(tmp_path)] == [10, 20]
        for step in (30, 40, 50):
            second.scalars(step, {"loss": 2.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]
    wanted = [(10, 1), (20, 1), (30, 2), (40, 2), (50, 2)]
    assert [(event.step, event.value) for event in shown(tmp_path)["loss"]] == wanted
    first.close()


def test_a_lost_file_comes_back_from_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(10, {"loss": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    with MetricsWriter(tmp_path, writer.history, step=10):
        assert lines(tmp_path) == writer.history != []


def test_a_run_from_the_start_begins_anew(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.scalars(10, {"loss": 1.0})
    with MetricsWriter(tmp_path) as writer:  # it died before its first checkpoint
        assert lines(tmp_path) == []
        writer.scalars(10, {"loss": 2.0})
    assert [line["loss"] for line in lines(tmp_path)] == [2.0]


def test_images_and_texts_are_shown(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with MetricsWriter(tmp_path) as writer:
        writer.images(5, {"paintings": image})
        writer.texts(5, {"captions": "a *red* circle"})
    [event] = shown(tmp_path, "images")["paintings"]
    assert (event.step, event.width, event.height) == (5, 30, 20)
    from PIL import Image

    (tmp_path / "shown.png").write_bytes(event.encoded_image_string)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "shown.png")), image)
    [(name, [event])] = shown(tmp_path, "tensors").items()
    assert name.startswith("captions") and event.tensor_proto.string_val == [b"a *red* circle"]


def test_what_cannot_be_written_is_reported_and_written_later(tmp_path):
    reports = []
    workdir = tmp_path / "run"
    workdir.write_text("in the way of the folder")
    writer = MetricsWriter(workdir, report=reports.append)
    writer.scalars(10, {"loss": 1.0})
    assert reports and all("step " in report and str(workdir) in report for report in reports)
    assert "step 10: metrics are not written" in reports[-1]
    workdir.unlink()
    before = len(reports)
    writer.scalars(20, {"loss": 2.0})
    writer.close()
    assert len(reports) == before and [line["step"] for line in lines(workdir)] == [10, 20]
    assert 20 in [event.step for event in shown(workdir)["loss"]]


def test_a_full_disk_in_the_middle_of_a_run(tmp_path):
    reports = []
    writer = MetricsWriter(tmp_path, report=reports.append)
    writer.scalars(10, {"loss": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    try:  # the next line is torn after twenty bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
        writer.scalars(20, {"loss": 2.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reports and reports[0].startswith("step 20: metrics are not written")
    writer.scalars(30, {"loss": 3.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]
    assert {10, 30} <= {event.step for event in shown(tmp_path)["loss"]}  # 20 was lost there, no more


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics.jax, "process_index", lambda: 1)
    with MetricsWriter(tmp_path / "run") as writer:
        writer.scalars(10, {"loss": 1.0})
        writer.images(10, {"x": np.zeros((8, 8, 3), np.uint8)})
    assert not (tmp_path / "run").exists()
    assert [line["step"] for line in writer.history] == [10]  # but all could


def test_two_event_files_of_one_second_are_two(tmp_path):
    for step in (1, 2, 3):
        writer = tensorboard.TensorBoardWriter(tmp_path / "tensorboard")
        writer.write_scalars(step, {"x": step})
        writer.close()
    assert [event.step for event in shown(tmp_path)["x"]] == [1, 2, 3]


def test_clus_writers_take_ours(tmp_path):
    from clu import metric_writers

    writer = metric_writers.AsyncMultiWriter([tensorboard.TensorBoardWriter(tmp_path / "tensorboard")])
    metric_writers.write_values(writer, 3, {"loss": 0.5})
    writer.write_hparams({"rate": 0.1})
    writer.write_histograms(3, {"weights": np.arange(10.0)})
    writer.close()
    assert [(event.step, event.value) for event in shown(tmp_path)["loss"]] == [(3, 0.5)]


def test_tensorflow_and_torch_are_never_imported(tmp_path):
    for name in ("tensorflow", "torch"):  # as if they were installed; importing them ends the process
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('{name} was imported')\n")
    program = (
        "import sys; from uae_jax.training.metrics import MetricsWriter; import clu.metric_writers;"
        f"w = MetricsWriter({str(tmp_path / 'run')!r}); w.scalars(1, {{'x': 1.0}}); w.close();"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


def test_averages_fetch_once(monkeypatch):
    calls = []
    fetch = jax.device_get
    monkeypatch.setattr(metrics.jax, "device_get", lambda tree: calls.append(1) or fetch(tree))
    averages = Averages()
    for step in (1, 2, 3):
        bad = jnp.array([False, step == 2])
        averages.add(step, {"loss": jnp.float32(step), "nonfinite": jnp.float32(0), "bad_examples": bad}, ["a", "b"])
    assert calls == []
    readings, means = averages.flush()
    assert calls == [1]
    assert means == {"loss": 2.0, "nonfinite": 0.0}
    assert [(reading.step, reading.metrics["loss"], reading.ids) for reading in readings] == [
        (1, 1.0, ["a", "b"]),
        (2, 2.0, ["a", "b"]),
        (3, 3.0, ["a", "b"]),
    ]
    assert readings[1].metrics["bad_examples"].tolist() == [False, True]
    assert averages.flush() == ([], {})


def test_bad_steps_do_not_hide_the_others():
    averages = Averages()
    for loss, nonfinite in ((1.0, 0), (math.nan, 1), (4.0, 0)):
        averages.add(0, {"loss": jnp.float32(loss), "nonfinite": jnp.float32(nonfinite)})
    _, means = averages.flush()
    # (1 + 4) / 2 of the good steps; one of three was bad. With the bad one the loss would be NaN.
    assert means["loss"] == 2.5 and means["nonfinite"] == pytest.approx(1 / 3)
    averages.add(0, {"loss": jnp.float32(math.nan), "nonfinite": jnp.float32(1)})
    assert math.isnan(averages.flush()[1]["loss"])  # nothing better is known


def test_metrics_that_some_steps_lack():
    averages = Averages()
    averages.add(1, {"loss": 1.0})
    averages.add(2, {"loss": 3.0, "extra": 5.0})
    assert averages.flush()[1] == {"loss": 2.0, "extra": 5.0}
