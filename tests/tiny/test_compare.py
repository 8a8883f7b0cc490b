"""Differences between runs, on figures whose differences are known beforehand."""

import json

import numpy as np
import pytest

from uae_jax.stages.scene_scores import of_each
from uae_jax.tiny import compare


def test_equal_runs_do_not_differ():
    rng = np.random.default_rng(0)
    runs = [{"unified": of_each(rng.random(20))} for _ in range(3)]
    row = compare.compare(runs, runs, draws=50)["unified"]
    # The same seeds and scenes are drawn for both sides: luck of the draw must not look like a difference.
    assert row["difference"] == row["low"] == row["high"] == 0 and row["by_seed"] == [0, 0, 0]


def test_the_interval_of_a_mean_is_the_textbook_one():
    rng = np.random.default_rng(1)
    before, change = rng.random(400), 0.1 + 0.3 * rng.standard_normal(400)
    row = compare.compare([{"x": of_each(before + change)}], [{"x": of_each(before)}], draws=4000)["x"]
    assert row["difference"] == pytest.approx(change.mean())
    # Paired: the spread of scenes themselves is no part of it. 4000 draws place a percentile to some 3% of the width.
    half = 1.96 * change.std() / 20
    assert row["low"] == pytest.approx(change.mean() - half, abs=0.1 * half)
    assert row["high"] == pytest.approx(change.mean() + half, abs=0.1 * half)


def test_seeds_that_disagree_widen_the_interval():
    same = {"x": of_each(np.zeros(50))}
    runs = [{"x": of_each(np.full(50, value))} for value in (0.0, 0.3, 0.6)]
    row = compare.compare(runs, [same] * 3, draws=20)["x"]
    # Scenes do not vary, so it is the textbook's interval of three values: 0.3 -+ 4.302653 * 0.3 / sqrt(3).
    assert (row["low"], row["high"]) == (pytest.approx(-0.445241, abs=1e-6), pytest.approx(1.045241, abs=1e-6))
    assert row["by_seed"] == pytest.approx([0, 0.3, 0.6])


@pytest.mark.parametrize(("seeds", "scenes"), [(2, 2), (3, 2), (3, 100)])
def test_an_interval_holds_the_truth_as_often_as_it_says(seeds, scenes):
    rng, held = np.random.default_rng(0), []
    control = [{"x": of_each(np.zeros(scenes))}] * seeds
    for _ in range(400):  # what chance makes of a training, and of the scenes in so far as they are many
        noise = rng.standard_normal((seeds, 1)) + 3 * rng.standard_normal(scenes) * (scenes > 2)
        row = compare.compare([{"x": of_each(own)} for own in np.broadcast_to(noise, (seeds, scenes))], control, 100)
        held.append(row["x"]["low"] < 0 < row["x"]["high"])
    # 0.95, where it is exact; 400 trials tell it to 0.011 (one sigma). Two parts together hold it more often.
    assert 0.92 < np.mean(held) <= (0.98 if scenes == 2 else 1)


def test_ratios_are_pooled_over_scenes():
    # 1 of 1 and 1 of 9 are 2 of 10, not the mean of 1 and 1/9; where nothing is claimed nothing is wrong.
    treated, control = np.array([(1, 1), (1, 9)], float), np.zeros((2, 2))
    row = compare.compare([{"precision": treated}], [{"precision": control}], draws=10)["precision"]
    assert (row["treated"], row["control"]) == (0.2, 1.0)


def test_the_table_marks_what_is_sure():
    row = {"treated": 0.9, "control": 0.8, "difference": 0.1, "low": 0.05, "high": 0.15, "by_seed": [0.1, 0.1]}
    lines = compare.table({"sure": row, "unsure": row | {"low": -0.01}, "one": row | {"by_seed": [0.1]}}).splitlines()
    assert "+0.100*" in lines[1] and "+0.100 " in lines[2] and lines[1].endswith("+0.100")
    assert "+0.100 " in lines[3]  # of another training nothing is known


def test_as_many_controls_as_runs(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--treated", "a", "b", "c", "--control", "d", "e"])
    assert "got 3 treated and 2 control runs" in capsys.readouterr().err


def test_each_model_is_measured_once_whatever_it_is_compared_with(tmp_path, monkeypatch, capsys):
    values, measured = {"a": 0.5, "b": 0.75, "c": 0.25, "d": 0.0, "tiny": 0.5}, []

    def measure(run, scenes, look):
        assert look.guidance == 1.5
        measured.append(run)
        return {"unified": of_each(np.full(len(scenes.images), values[run]))}

    monkeypatch.setattr(compare, "measure", measure)
    output = tmp_path / "found.json"
    arguments = ["--treated", "a", "b", "--control", "c", "d", "--control", "tiny", "--scenes", "3"]
    compare.main([*arguments, "--guidance", "1.5", "--output", str(output)])
    assert measured == ["a", "b", "c", "d", "tiny"]
    own, common = json.loads(output.read_text())
    assert (own["treated"], own["control"], common["control"]) == (["a", "b"], ["c", "d"], ["tiny"])
    assert own["figures"]["unified"]["by_seed"] == [0.25, 0.75] and common["figures"]["unified"]["by_seed"] == [0, 0.25]
    assert capsys.readouterr().out.count("control: ") == 2
