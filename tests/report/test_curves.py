"""What belongs together stands in one chart, and nothing is missing."""

import pytest

from tests.report.workdirs import write_run
from uae_jax.report import names
from uae_jax.report.curves import ramp, stage_charts, whole_charts
from uae_jax.report.runs import read_runs


def charts_of(folder, *lines):
    (run,) = read_runs(write_run(folder / "run", [(10 * i, values) for i, values in enumerate(lines, 1)]))
    return {chart.title: (group, chart) for group, drawn in stage_charts(run).items() for chart in drawn}


def labels(chart):
    return [line.label for line in chart.lines]


def test_training_and_evaluation_share_a_chart(tmp_path):
    charts = charts_of(tmp_path, {"loss": 2.0, "evaluation/loss": 3.0}, {"loss": 1.0})
    group, chart = charts["Loss"]
    assert group == names.LEARNING and labels(chart) == ["training", "evaluation"]
    assert [line.points for line in chart.lines] == [[(10, 2.0), (20, 1.0)], [(10, 3.0)]]
    assert [line.marks for line in chart.lines] == [False, True]


def test_a_family_is_one_chart_with_a_line_per_step(tmp_path):
    names_ = [f"ratio_mean/{i}" for i in (10, 2, 0)]
    charts = charts_of(tmp_path, dict.fromkeys(names_, 1.0) | {"ratio_mean": 1.0, "velocity_gap/0": 0.1})
    group, chart = charts["Probability ratio, mean, by denoising step"]
    assert group == names.STEPS and labels(chart) == ["0", "2", "10"]
    assert len({line.colour for line in chart.lines}) == 3 and len({line.style for line in chart.lines}) == 3
    assert labels(charts["Probability ratio"][1]) == ["mean"]
    assert labels(charts["Velocity gap, by denoising step"][1]) == ["0"]


def test_scorers_are_lines_of_their_charts(tmp_path):
    scorers = {"reward/clip": 0.5, "reward/dinov2": 0.6, "held_out/dinov3": 0.4, "evaluation/score/clip": 0.5}
    charts = charts_of(tmp_path, scorers)
    assert labels(charts["Reward by scorer"][1]) == ["clip", "dinov2"]
    assert labels(charts["Scorers outside the reward"][1]) == ["dinov3"]  # one scorer keeps its name
    assert labels(charts["Score by scorer"][1]) == ["clip"]


def test_lines_are_not_told_apart_by_colour_alone(tmp_path):
    _, chart = charts_of(tmp_path, {f"reward/s{i}": 0.1 * i for i in range(6)})["Reward by scorer"]
    assert len({line.style.split()[1] for line in chart.lines}) == 6


def test_recall_and_precision_are_explained_each(tmp_path):
    metrics = {"attribute_recall": 0.5, "evaluation/attribute_recall": 0.5, "evaluation/attribute_precision": 0.9}
    _, chart = charts_of(tmp_path, metrics)["Attributes in captions"]
    assert labels(chart) == ["recall", "recall, evaluation", "precision, evaluation"]
    assert chart.note.startswith("recall: share") and "; precision: share" in chart.note


def test_unknown_names_are_shown_as_they_are(tmp_path):
    charts = charts_of(tmp_path, {"my_metric": 1.0, "evaluation/my_metric": 2.0, "odd/1": 3.0, "odd/2": 4.0})
    group, chart = charts["my_metric"]
    assert group == names.OTHER and labels(chart) == ["training", "evaluation"]
    assert charts["odd"][0] == names.OTHER and labels(charts["odd"][1]) == ["1", "2"]


def test_every_metric_is_drawn_once_and_groups_have_their_order(tmp_path):
    known = ["loss", "reward", "reward_std", "caption_tokens", "caption_words", "entropy", "kl", "ratio_min"]
    known += ["ratio_max", "clip_high", "clip_low", "zero_variance_groups", "truncated", "grad_norm", "learning_rate"]
    known += ["overlong_price"]
    known += ["accuracy", "caption_loss", "mse", "mse_at_0.5", "mse_at_0.75", "psnr", "kl/3", "whatever"]
    known += [f"evaluation/{name}" for name in names.HEADLINES]
    (run,) = read_runs(write_run(tmp_path / "run", [(1, {name: i for i, name in enumerate(known)})]))
    groups = stage_charts(run)
    drawn = [line.points[0][1] for charts in groups.values() for chart in charts for line in chart.lines]
    assert sorted(drawn) == list(range(len(known)))
    assert list(groups) == [group for group in names.GROUPS if group in groups] and len(groups) == len(names.GROUPS)
    assert groups[names.OTHER][0].title == "whatever" and len(groups[names.OTHER]) == 1  # all others are known


def test_titles_are_for_people():
    assert names.describe("evaluation/score/dinov2").title == "Score by dinov2"
    assert names.describe("evaluation/accuracy_image_to_text").title == "Found in the batch, image to text"
    assert names.describe("image_to_text_1_of_64").title == "Found among 64, image to text"
    assert names.describe("caption_words").unit == "words"
    assert names.describe("clip_high/3").title == "Clipped, high, 3"
    assert names.describe("{0}/{1}").title == "{0}/{1}"


def test_the_whole_run_is_one_axis(tmp_path):
    write_run(tmp_path / "1_a", [(50, {"caption_words": 9.0, "evaluation/caption_words": 10.0}), (100, {})])
    write_run(tmp_path / "2_b", [(40, {"evaluation/caption_words": 20.0, "evaluation/attribute_recall": 0.5})])
    write_run(tmp_path / "3_c", [], done=False)
    (chart,) = whole_charts(read_runs(tmp_path))  # recall was measured once: no curve
    assert chart.title == "Caption length" and chart.wide
    assert list(chart.spans) == [(0, "1_a"), (100, "2_b"), (140, "3_c")]
    # A line for each stage, so that none leads from one to the next; each kind is in the legend once.
    assert [(line.label, line.points, line.origin) for line in chart.lines] == [
        ("training", [(50, 9.0)], 0),
        ("evaluation", [(50, 10.0)], 0),
        ("", [(140, 20.0)], 100),
    ]


def test_the_ramp_goes_from_blue_over_grey_to_orange():
    assert [ramp(part) for part in (0, 0.5, 1)] == ["#3b6fd4", "#8c8f98", "#de8b1a"]
    assert ramp(0.25) == "#647fb6"  # (59 + 140) / 2 = 99.5, which rounds to the even 100 = 0x64


@pytest.mark.parametrize("name", ["a/b/3", "/", "evaluation/", "3", "x/²"])
def test_odd_names_do_no_harm(tmp_path, name):
    assert len(charts_of(tmp_path, {name: 1.0})) == 1
