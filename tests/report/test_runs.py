"""Runs are found at any depth and in their order, and read whatever state they are in."""

import math

import pytest

from tests.report.workdirs import write_run
from uae_jax.report.runs import read_runs, working_time


def test_one_stage_is_the_folder_itself(tmp_path):
    write_run(tmp_path / "vae", [(10, {"loss": 2.0}), (20, {"loss": 1.0})], steps=20, pictures={"a": [20, 10]})
    (run,) = read_runs(tmp_path / "vae")
    assert (run.name, run.stage, run.step, run.steps, run.finished) == ("vae", "caption_sft", 20, 20, True)
    assert run.names == ["loss"] and run.points("loss") == [(10, 2.0), (20, 1.0)]
    assert list(run.pictures["a"]) == [10, 20]


def test_stages_come_in_natural_order_at_any_depth(tmp_path):
    names = ["1_a", "2_b", "3_alternate/1_c", "3_alternate/2_d", "3_alternate/10_e", "10_f"]
    for name in reversed(names):
        write_run(tmp_path / name, [(1, {"loss": 1.0})])
    # By letters 10_f would come first, and 10_e before 1_c.
    assert [run.name for run in read_runs(tmp_path)] == names


def test_what_belongs_to_a_run_is_no_run(tmp_path):
    folder = write_run(tmp_path / "run", [(1, {"loss": 1.0})])
    for below in ("model/encoder", "checkpoints/1", "pictures/x", ".trash"):
        write_run(folder / below, [(1, {"loss": 1.0})])
    assert [run.folder for run in read_runs(tmp_path)] == [folder]


def test_a_run_under_way(tmp_path):
    write_run(tmp_path / "new", [], done=False)
    write_run(tmp_path / "going", [(50, {"loss": 1.0})], done=False)
    write_run(tmp_path / "longer", [(50, {"loss": 1.0})], steps=100, done=True)  # a model of fewer steps
    going, longer, new = read_runs(tmp_path)
    assert not any(run.finished for run in (going, longer, new))
    assert (new.step, new.names, new.times()) == (0, [], [])


def test_half_written_files_are_passed_over(tmp_path):
    folder = write_run(tmp_path / "run", [(10, {"loss": 1.0, "note": "text", "list": [1]})], pictures={"a": [10]})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    (folder / "config.json").write_text('{"stage": "cap')
    (folder / "pictures" / "a" / ".00000020.part").write_bytes(b"")
    (folder / "pictures" / "empty").mkdir()
    (run,) = read_runs(folder)
    assert (run.config, run.stage, run.steps, run.step, run.finished) == ({}, "", None, 10, True)
    assert run.names == ["loss"]
    assert {name: list(files) for name, files in run.pictures.items()} == {"a": [10]}


def test_numbers_that_json_has_not(tmp_path):
    write_run(tmp_path / "run", [(1, {"x": None}), (2, {"x": "inf"}), (3, {"x": "-inf"}), (4, {"y": 0})])
    (run,) = read_runs(tmp_path)
    (_, nan), *rest = run.points("x")
    assert math.isnan(nan) and rest == [(2, math.inf), (3, -math.inf)]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_runs_is_refused(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "none"
    with pytest.raises(ValueError, match=r"no run in it, wanted the --workdir of `uae train`") as error:
        read_runs(folder)
    assert str(folder) in str(error.value)


def test_pauses_do_not_count_as_work():
    # 60 s apart, then a night of 8 h: 3 x 60 s of work. A slow evaluation of 5 min is no pause.
    assert working_time([0, 60, 120, 120 + 28800, 180 + 28800]) == (180, 1)
    assert working_time([0, 60, 120, 420]) == (420, 0)
    # Gaps of 20 min are long, but usual.
    assert working_time([0, 1200, 2400]) == (2400, 0)
    assert working_time([7.0]) == (0.0, 0) and working_time([]) == (0.0, 0)
