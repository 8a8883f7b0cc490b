"""A run of several processes is that of one: its numbers, its checkpoints, and how it ends."""

import json
import signal
import time

import jax
import numpy as np
import pytest

from tests.stages.meshes import relative
from tests.training import several
from tests.training.test_loop import history, result
from uae_jax.errors import ABANDONED, FAILED, STOPPED
from uae_jax.training import checkpoints

pytestmark = pytest.mark.slow
TOY = "tests.training.toy_process"


def toy_run(folder, count, changes=None, **settings):
    several.run([TOY, folder, json.dumps(changes or {})], count, folder, **settings)


def test_two_and_four_processes_are_as_one(tmp_path):
    for count in (1, 2, 4):
        toy_run(tmp_path / str(count), count, devices=4 // count)
    for count in (2, 4):
        got, wanted = result(tmp_path / f"{count}/model"), result(tmp_path / "1/model")
        assert got["seen"] == wanted["seen"]
        assert relative(got["linear"], wanted["linear"]) < 1e-6  # sums are made in another order
        for line, other in zip(history(tmp_path / str(count)), history(tmp_path / "1"), strict=True):
            assert line == pytest.approx(other, rel=1e-5)  # evaluations, too
        pictures = [sorted((tmp_path / n / "pictures/guesses").iterdir()) for n in (str(count), "1")]
        assert [p.read_bytes() for p in pictures[0]] == [p.read_bytes() for p in pictures[1]]
        for index in range(count):
            first = several.said(tmp_path / str(count), index).splitlines()[0]
            assert first.startswith(f"process {index} of {count} on ")
            assert f": {4 // count} of 4 devices" in first
        assert "step 12" in several.said(tmp_path / str(count), 0)
        assert "step 12" not in several.said(tmp_path / str(count), 1)  # one talks


def test_a_run_goes_on_with_other_processes_and_another_mesh(tmp_path):
    constant = {"optimiser": {"learning_rate": 0.05, "schedule": "constant", "warmup": 2}}  # however many steps
    toy_run(tmp_path / "whole", 1, constant, devices=4)
    folder = tmp_path / "parts"
    toy_run(folder, 2, constant | {"steps": 4}, devices=2)
    restored = []
    for mesh in ({"data": 2}, {"fsdp": 4}, {"data": 2, "tensor": 2}):
        # Kernel [4, 2] of axes ("embed", None): whole, or in four rows.
        sharding = jax.sharding.NamedSharding(
            jax.make_mesh(tuple(mesh.values()), tuple(mesh), devices=jax.devices()[: int(np.prod([*mesh.values()]))]),
            jax.sharding.PartitionSpec("fsdp" if "fsdp" in mesh else None),
        )
        restored.append(read(folder, sharding))
    assert all(np.array_equal(one, restored[0]) for one in restored)
    toy_run(folder, 1, constant | {"steps": 8, "mesh": {"fsdp": 4}}, devices=4)
    toy_run(folder, 4, constant | {"steps": 12, "mesh": {"data": 2, "fsdp": 2}})
    whole, parts = result(tmp_path / "whole/model"), result(folder / "model")
    assert parts["seen"] == whole["seen"]
    assert relative(parts["linear"], whole["linear"]) < 1e-6
    losses = [
        [(line["step"], line["loss"]) for line in history(f) if "loss" in line] for f in (folder, tmp_path / "whole")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)  # each step once, and the same data


def read(folder, sharding):
    """The kernel in the checkpoint of step 4."""
    stored = json.loads((folder / "checkpoints/00000004/leaves.json").read_text())

    def wanted(path, leaf):
        dtype = jax.random.key(0).dtype if leaf["dtype"].startswith("key") else leaf["dtype"]
        own = sharding if path == "params/linear/kernel" else None
        return jax.ShapeDtypeStruct(leaf["shape"], dtype, sharding=own)

    tree = {path: wanted(path, leaf) for path, leaf in stored.items()}
    found = checkpoints.CheckpointStore(folder / "checkpoints").restore(tree, step=4).state
    return np.asarray(found["params/linear/kernel"])


def test_a_mesh_may_split_a_model_over_processes(tmp_path):
    # Both processes need every row then; each reads them all.
    toy_run(tmp_path / "one", 1)
    toy_run(tmp_path / "two", 2, {"mesh": {"tensor": 2}})
    assert relative(result(tmp_path / "two/model")["linear"], result(tmp_path / "one/model")["linear"]) < 1e-6


def test_sigterm_to_one_process_saves_on_all(tmp_path):
    toy_run(tmp_path / "whole", 2)
    folder = tmp_path / "parts"
    arguments = [TOY, folder, json.dumps({"slow": 0.5})]
    with several.started(arguments, 2, folder) as running:
        several.wait_for_step(folder, 1, 2, running)
        running[1].send_signal(signal.SIGTERM)
        assert several.ended(running, 60) == [STOPPED, STOPPED]  # what starts it again takes this for no failure
    assert "stopped at step" in several.said(folder, 0) and "stopped at step" in several.said(folder, 1)
    toy_run(folder, 2)
    assert result(folder / "model") == result(tmp_path / "whole/model")
    steps = [line["step"] for line in history(folder) if "loss" in line]
    assert len(steps) == len(set(steps))


def test_samples_of_all_processes_are_named_where_a_loss_is_no_number(tmp_path):
    # Samples 0 to 31 are fine; what is bad lies in rows of both processes.
    changes = {"settings": {"poison": 32}, "max_nonfinite": 2, "steps": 12}
    arguments = [TOY, tmp_path, json.dumps(changes)]
    with several.started(arguments, 2, tmp_path) as running:
        assert several.ended(running, 300) == [1, 1]
    alone = tmp_path / "alone"
    with several.started([TOY, alone, json.dumps(changes)], 1, alone, devices=2) as running:
        assert several.ended(running, 300) == [1]
    told = [
        [line for line in several.said(*place).splitlines() if "samples" in line]
        for place in ((tmp_path, 0), (alone, 0), (tmp_path, 1))
    ]
    assert told[0] == told[1] != []
    assert told[2] == told[0][-1:]  # the error; notes are process 0's


@pytest.mark.parametrize("index", [0, 1])
def test_a_missing_process_is_named(tmp_path, index):
    start = time.monotonic()
    arguments = [TOY, tmp_path, "{}"]
    with several.started(arguments, 3, tmp_path, missing=[index], UAE_START_TIMEOUT="15") as running:
        there = [i for i in range(3) if i != index]
        assert [several.ended(running, 120)[i] for i in there] == [ABANDONED] * 2
    assert time.monotonic() - start < 120
    for i in there:
        assert f"process {index} of 3 did not come within 15 s" in several.said(tmp_path, i)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_dies_ends_the_others(tmp_path, index):
    arguments = [TOY, tmp_path, json.dumps({"slow": 0.3, "steps": 1000})]
    with several.started(arguments, 2, tmp_path) as running:
        several.wait_for_step(tmp_path, index, 2, running)
        several.kill(running[index])
        start = time.monotonic()
        codes = several.ended(running, 120)
    assert time.monotonic() - start < 120
    # JAX, where it is faster to notice, aborts.
    assert codes[index] == -signal.SIGKILL and codes[1 - index] in (ABANDONED, -signal.SIGABRT)
    told = several.said(tmp_path, 1 - index)
    # Without process 0 there is nobody to ask; JAX calls it the leader, and ends the others at once.
    assert "no word from process 1" in told if index else "leader" in told or "no word from process 0" in told


def test_a_process_that_fails_is_named_by_the_others(tmp_path):
    changes = {"slow": 0.3, "steps": 1000, "fail_at": 3, "fail_in": 1}
    with several.started([TOY, tmp_path, json.dumps(changes)], 2, tmp_path) as running:
        assert several.ended(running, 120) == [FAILED, FAILED]  # also who was only waiting: it would fail again
    assert "uae: error: this process has had enough" in several.said(tmp_path, 1)
    assert "process 1 on" in several.said(tmp_path, 0)
    assert "failed first: ValueError: this process has had enough" in several.said(tmp_path, 0)
