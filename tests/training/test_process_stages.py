"""Every stage, run by two processes or four, is what one process makes of it; and what they save any others restore.

One run has four devices, however many processes have them.
"""

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
# How near a first gradient comes in size, and all that is logged later. What crosses a sampler has fewer digits than
# float32 stores: moving every weight by one unit in its last place (see test_loop_meshes.py) changes the size of a cold
# start's gradient by 2.5e-6. Its parameters agree as those of other stages do.
DIGITS = {"cold_start": (1e-5, 1e-3)}
DATA_AND_FSDP = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
# Processes, devices of each, mesh.
OTHERS = {
    "one": (1, 1, ()),
    "two": (2, 2, ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")),
    "four": (4, 2, ("--config.mesh.data=2", "--config.mesh.fsdp=4")),
}


def config(stage):
    return f"tests/training/processes_config.py:{stage}"


def train(stage, folder, count, *overrides):
    arguments = ["uae_jax.cli", "train", "--config", config(stage), "--workdir", folder / "run", *overrides]
    several.run(arguments, count, folder, seconds=1500, devices=4 // count)


def restore(stage, run, folder, count, devices, mesh):
    """Has other processes restore a run's last checkpoint and save it again; into how many parts they split what."""
    arguments = ["tests.training.restore_process", config(stage), run, folder, EPS, *mesh]
    several.run(arguments, count, folder, seconds=900, devices=devices)
    return json.loads((folder / "split.json").read_text())


def stored(folder):
    """Path -> array of the last step's checkpoint."""
    checkpoints = folder / "checkpoints"
    leaves = json.loads((checkpoints / f"{STEPS:08d}/leaves.json").read_text())
    keys = {path: jax.random.key(0).dtype for path, leaf in leaves.items() if "key" in leaf["dtype"]}
    wanted = {path: jax.ShapeDtypeStruct(leaf["shape"], keys.get(path, leaf["dtype"])) for path, leaf in leaves.items()}
    state = CheckpointStore(checkpoints).restore(wanted, step=STEPS).state
    return {path: np.asarray(jax.random.key_data(x) if path in keys else x) for path, x in state.items()}


def part(state, group):
    return {path: leaf for path, leaf in state.items() if path.startswith(f"{group}/")}


def files(folder):
    """What a run leaves to look at and to use."""
    pictures, model = folder.rglob("pictures/*/*.png"), folder.rglob("run/model/**/*")
    return {str(file.relative_to(folder)) for file in (*pictures, *model)}


@pytest.fixture(scope="module", params=[asked_for(stage) for stage in SETTINGS])
def trained(request, tmp_path_factory):
    """A stage, and the folder in which one process, two and four have trained it. Up to ten minutes each."""
    stage, folder = request.param, tmp_path_factory.mktemp(request.param)
    train(stage, folder / "1", 1, EPS)
    train(stage, folder / "2", 2, EPS)
    train(stage, folder / "4", 4, EPS, *DATA_AND_FSDP)
    return stage, folder


# `test_processes.py` has a toy always.
@pytest.mark.parametrize("count", ["2", "4"])
def test_processes_train_a_stage_as_one(trained, count):
    stage, folder = trained
    alone, together = folder / "1", folder / count
    one, others = stored(alone / "run"), stored(together / "run")
    for group in ("params", "ema", "stage"):
        wanted = part(one, group)
        assert wanted or group == "stage"
        assert not wanted or relative(part(others, group), wanted) < 1e-6
    lines = history(together / "run"), history(alone / "run")
    assert lines[1][0]["grad_norm"] > 0  # else all of the above says nothing
    first, later = DIGITS.get(stage, (1e-6, 1e-4))
    assert lines[0][0]["grad_norm"] == pytest.approx(lines[1][0]["grad_norm"], rel=first)
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for line, other in zip(*lines, strict=True):
        assert line == pytest.approx(other, rel=later, abs=1e-5)
    assert files(together) == files(alone) != set()


@pytest.mark.parametrize("others", OTHERS)
def test_what_four_processes_saved_others_restore_bit_by_bit(trained, others, tmp_path):
    stage, folder = trained
    count, devices, mesh = OTHERS[others]
    split = restore(stage, folder / "4/run", tmp_path / others, count, devices, mesh)
    assert bool(split) == bool(mesh)  # what it was saved as is split in two
    saved, again = stored(folder / "4/run"), stored(tmp_path / others)
    assert saved.keys() == again.keys()
    assert {path.split("/")[0] for path in saved} >= {"params", "moments", "ema", "key", "step"}
    for path, leaf in saved.items():
        assert leaf.dtype == again[path].dtype
        np.testing.assert_array_equal(leaf, again[path], err_msg=path)
