"""Every stage, run by two processes with a device each, is what one process with two devices makes of it."""

import json

import jax
import numpy as np
import pytest

from tests.stages.meshes import relative
from tests.training import several
from tests.training.kill_config import SETTINGS
from tests.training.test_kill_and_resume import asked_for
from tests.training.test_loop import history
from uae_jax.training.checkpoints import CheckpointStore

pytestmark = pytest.mark.slow
STEPS = 3
# Adam divides a gradient by its own size: where it is nothing but rounding, as of the keys' biases, which no softmax
# feels, two runs that agree to the last digit go different ways. With this beside the size they do not.
EPS = "--config.optimiser.eps=1e-3"


def train(stage, folder, count, *overrides, **settings):
    config = f"tests/training/processes_config.py:{stage}"
    arguments = ["uae_jax.cli", "train", "--config", config, "--workdir", folder / "run", *overrides]
    several.run(arguments, count, folder, seconds=900, **settings)


def trained(folder, group):
    """Path -> array of what a checkpoint of the last step has of "params", "moments", "ema" or "stage"."""
    checkpoints = folder / "run/checkpoints"
    stored = json.loads((checkpoints / f"{STEPS:08d}/leaves.json").read_text())
    dtypes = {
        path: jax.random.key(0).dtype if "key" in leaf["dtype"] else leaf["dtype"] for path, leaf in stored.items()
    }
    wanted = {path: jax.ShapeDtypeStruct(leaf["shape"], dtypes[path]) for path, leaf in stored.items()}
    state = CheckpointStore(checkpoints).restore(wanted, step=STEPS).state
    return {path: np.asarray(leaf) for path, leaf in state.items() if path.startswith(f"{group}/")}


# Up to four minutes each; `test_processes.py` has one always.
@pytest.mark.parametrize("stage", [asked_for(stage) for stage in SETTINGS])
def test_two_processes_train_a_stage_as_one(stage, tmp_path):
    train(stage, tmp_path / "one", 1, EPS, devices=2)
    train(stage, tmp_path / "two", 2, EPS)
    for group in ("params", "ema", "stage"):
        wanted = trained(tmp_path / "one", group)
        assert wanted or group == "stage"
        assert not wanted or relative(trained(tmp_path / "two", group), wanted) < 1e-6
    lines = [history(tmp_path / name / "run") for name in ("two", "one")]
    assert lines[1][0]["grad_norm"] > 0  # else all of the above says nothing
    assert lines[0][0]["grad_norm"] == pytest.approx(lines[1][0]["grad_norm"], rel=1e-6)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for line, other in zip(*lines, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
    pictures = [{p.relative_to(f) for p in f.rglob("pictures/*/*.png")} for f in (tmp_path / "two", tmp_path / "one")]
    files = [{p.relative_to(f) for p in f.rglob("run/model/**/*")} for f in (tmp_path / "two", tmp_path / "one")]
    assert {str(p).removeprefix("run") for p in pictures[0]} == {str(p).removeprefix("run") for p in pictures[1]}
    assert files[0] == files[1] != set()
