"""The demonstration runs from end to end, and says what it measured."""

import json
import os
import subprocess
import sys

import pytest

from tests.tiny.embedded import needed
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


def test_the_table_has_a_line_for_each_model():
    rows = {"embedded": {"unified": 0.5, "words": 12.345}, "generation": {"unified": 0.75, "words": 20.0}}
    assert command.table(rows).splitlines() == [
        "after           unified      words",
        "embedded          0.500       12.3",
        "generation        0.750       20.0",
    ]


def run(arguments):
    """`uae demo`, on one device: here are eight, on which small programs compile and run far longer."""
    flags = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"
    line = [sys.executable, "-m", "uae_jax.cli", *map(str, arguments)]
    done = subprocess.run(line, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needed
@pytest.mark.slow
def test_demo(tmp_path):
    short = {"steps": 1, "batch_size": 2, "evaluation_batches": 1, "settings.pictures": 1}
    overrides = [f"--config.{name}.{key}={value}" for name in NAMES for key, value in short.items()]
    overrides += [f"--config.{name}.settings.group=2" for name in NAMES[2:]]
    arguments = ["demo", "--workdir", tmp_path / "run", "--quiet", "--scenes", 4, *overrides]
    out = run(arguments)
    rows = json.loads((tmp_path / "run" / command.FIGURES).read_text())
    assert list(rows) == ["embedded", *NAMES]
    assert all(set(command.COLUMNS) <= set(row) for row in rows.values())
    assert out.startswith(command.table(rows)) and (tmp_path / "run/report.html").stat().st_size > 10_000
    assert rows["generation"] != rows["embedded"]

    models = [tmp_path / f"run/{i}_{name}/model/inference.json" for i, name in enumerate(NAMES, start=1)]
    written = [file.stat().st_mtime_ns for file in models]
    run(arguments)
    assert [file.stat().st_mtime_ns for file in models] == written  # nothing is trained twice
    assert json.loads((tmp_path / "run" / command.FIGURES).read_text()) == rows
