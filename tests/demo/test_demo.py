"""The demonstration runs from end to end, and says what it measured; so does the notebook that shows it."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

from tests import quickly
from tests.notebooks.running import NOTEBOOKS, runs_as_committed
from tests.tiny.embedded import needed
from uae_jax import cli
from uae_jax.demo import command
from uae_jax.training import configure

NAMES = ("pretrain", "cold_start", "understanding", "generation")


def test_its_config_is_the_four_stages_each_from_the_last():
    experiments = configure.load_config(str(command.CONFIG))
    assert tuple(name for name, _ in experiments) == NAMES
    assert [e.settings.model for _, e in experiments] == ["tiny", "previous", "previous", "previous"]
    trained, looked_at = (
        {s.scenes.seed for _, e in experiments for s in getattr(e, which).sources} for which in ("data", "validation")
    )
    assert not trained & looked_at


@pytest.mark.parametrize("scenes", ["0", "-3"])
def test_no_scenes_to_measure_on_are_refused_at_once(scenes, tmp_path, capsys):
    assert cli.main(["demo", "--scenes", scenes, "--workdir", str(tmp_path / "run")]) == 1
    assert f"--scenes is {scenes}, wanted at least 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_table_has_a_line_for_each_model():
    rows = {"embedded": {"unified": 0.5, "words": 12.345}, "generation": {"unified": 0.75, "words": 20.0}}
    assert command.table(rows).splitlines() == [
        "after           unified      words",
        "embedded          0.500       12.3",
        "generation        0.750       20.0",
    ]


def run(arguments):
    """`uae demo`, on one device: here are eight, on which small programs compile and run far longer."""
    line = [sys.executable, "-m", "uae_jax.cli", *map(str, arguments)]
    environment = os.environ | {"XLA_FLAGS": quickly.XLA_FLAGS}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needed
@pytest.mark.slow
def test_demo_and_its_notebook(tmp_path):
    small = ("steps", "evaluation_batches", "batch_size")
    overrides = [f"--config.{name}.{key}=1" for name in NAMES for key in small]
    arguments = ["demo", "--workdir", tmp_path / "run", "--quiet", "--scenes", 4, *overrides]
    out = run(arguments)
    rows = json.loads((tmp_path / "run" / command.FIGURES).read_text())
    assert list(rows) == ["embedded", *NAMES]
    assert all(set(command.COLUMNS) <= set(row) for row in rows.values())
    assert out.startswith(command.table(rows)) and (tmp_path / "run/report.html").stat().st_size > 10_000
    assert rows["generation"] != rows["embedded"]

    models = [tmp_path / f"run/{i}_{name}/model/inference.json" for i, name in enumerate(NAMES, start=1)]
    written = [file.stat().st_mtime_ns for file in models]
    file = next(file for file in NOTEBOOKS if file.stem == "train_tiny")
    given = {"SCENES": 4, "OVERRIDES": " ".join(overrides), "WORKDIR": tmp_path / "run"}
    said = runs_as_committed(file, tmp_path, **given)
    assert command.table(rows) in said
    assert [file.stat().st_mtime_ns for file in models] == written  # nothing is trained twice
