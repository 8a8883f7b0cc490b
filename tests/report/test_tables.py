"""How far each metric came, in numbers, signs and words."""

import math
import re

import pytest

from tests.report.workdirs import START, Page, write_run
from uae_jax.report import tables
from uae_jax.report.runs import read_runs

MINUS, NOTHING = "\N{MINUS SIGN}", "\N{EN DASH}"


def rows(source):
    """The words of each row, cell by cell."""
    Page(source)
    cells = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", source))
    return [[re.sub(r"<[^>]+>", "", cell) for cell in row] for row in cells]


def read(folder, lines, **more):
    (run,) = read_runs(write_run(folder / "run", lines, **more))
    return run


def test_first_to_last_with_direction_and_verdict(tmp_path):
    first = {"evaluation/unified": 0.5, "evaluation/loss": 2.0, "evaluation/caption_words": 20.0, "loss": 9.0}
    last = {"evaluation/unified": 0.75, "evaluation/loss": 2.5, "evaluation/caption_words": 80.5, "loss": 1.0}
    _, *body = rows(tables.headline(read(tmp_path, [(100, first), (1000, last)])))
    # Training's loss is not there: evaluation counts. More words are neither better nor worse.
    assert [row[1:] for row in body] == [
        ["0.7500", "▲ +0.2500 better", "0.5000", "100 → 1,000"],
        ["80.50 words", "▲ +60.50", "20", "100 → 1,000"],
        ["2.500", "▲ +0.500 worse", "2", "100 → 1,000"],
    ]
    assert [row[0][:4] for row in body] == ["Unif", "Capt", "Loss"]


def test_a_falling_loss_is_better(tmp_path):
    run = read(tmp_path, [(1, {"evaluation/loss": 2.0}), (2, {"evaluation/loss": 1.5})])
    assert rows(tables.headline(run))[1][2] == f"▼ {MINUS}0.500 better"


def test_without_change(tmp_path):
    run = read(tmp_path, [(1, {"evaluation/loss": 2.0, "evaluation/mse": 1.0}), (2, {"evaluation/loss": 2.0})])
    _, loss, mse = rows(tables.headline(run))
    assert loss[2] == "= unchanged"
    assert mse[2] == NOTHING and mse[4] == "1"  # one reading has no change


def test_values_that_are_no_numbers_are_said(tmp_path):
    run = read(tmp_path, [(1, {"evaluation/loss": 2.0}), (2, {"evaluation/loss": None})])
    assert rows(tables.headline(run))[1][1:4] == ["NaN", NOTHING, "2"]
    assert tables.changes(run)[0].amount is None and math.isnan(tables.changes(run)[0].last[1])


def test_before_the_first_evaluation_training_counts(tmp_path):
    run = read(tmp_path, [(10, {"loss": 2.0, "learning_rate": 1e-3}), (20, {"loss": 1.0, "learning_rate": 1e-3})])
    head, *body = rows(tables.headline(run))
    assert head[0] == "metric in training (no evaluation yet)" and [row[0][:4] for row in body] == ["Loss"]
    (new,) = read_runs(write_run(tmp_path / "new", []))
    assert "No reading yet." in tables.headline(new)


def test_explanations_are_not_repeated(tmp_path):
    run = read(tmp_path, [(1, {f"evaluation/score/{name}": 0.5 for name in ("clip", "dinov2")})])
    assert tables.headline(run).count("likeness of painted and original image") == 1


def test_stages(tmp_path):
    write_run(tmp_path / "1_a", [(50, {"loss": 1.0}), (100, {"loss": 1.0})], stage="pretrain")
    write_run(tmp_path / "2_<b>", [(30, {"loss": 1.0})], steps=1000, done=False)
    write_run(tmp_path / "3_c", [], done=False)
    source = tables.stages(read_runs(tmp_path))
    assert rows(source)[1:] == [
        ["1_a", "pretrain", "✓ done", "100", "10 s", "2026-11-24 06:00 UTC", "2026-11-24 06:00 UTC"],
        ["2_&lt;b&gt;", "caption_sft", "◔ under way", "30 of 1,000", NOTHING, *2 * ["2026-11-24 06:00 UTC"]],
        ["3_c", "caption_sft", "◔ under way", "0 of 100", NOTHING, NOTHING, NOTHING],
    ]
    assert tables.moment(START) == "2026-11-24 06:00 UTC"


def test_from_stage_to_stage(tmp_path):
    write_run(tmp_path / "1_a", [(1, {"evaluation/caption_words": 10.0, "evaluation/loss": 3.0})])
    write_run(tmp_path / "2_b", [(1, {"evaluation/unified": 0.1}), (2, {"evaluation/unified": 0.5})])
    words = {"evaluation/unified": 0.4, "evaluation/caption_words": 30.0, "evaluation/score/clip": 0.3}
    write_run(tmp_path / "3_c", [(1, words)])
    # Losses of different stages do not compare. The change is since the last stage that measured it.
    assert rows(tables.from_stage_to_stage(read_runs(tmp_path))) == [
        ["stage", "Unified score", "Score by clip", "Caption length"],
        ["1_a", NOTHING, NOTHING, "10"],
        ["2_b", "0.5000", NOTHING, NOTHING],
        ["3_c", f"0.4000▼ {MINUS}0.1000 worse", "0.3000", "30▲ +20.00"],
    ]
    assert tables.from_stage_to_stage(read_runs(tmp_path / "1_a")) == ""


def test_tiles_go_over_all_stages(tmp_path):
    write_run(tmp_path / "1_a", [(1, {"evaluation/caption_words": 10.0, "caption_words": 1.0})])
    write_run(tmp_path / "2_b", [(1, {"evaluation/caption_words": 30.0})])
    words = re.sub(r"<[^>]+>", " ", tables.tiles(read_runs(tmp_path)))
    assert " ".join(words.split()) == "Caption length 30 words from 10 ▲ +20.00"


def test_tiles_of_a_stage_without_headlines_show_what_it_learns(tmp_path):
    values = {"evaluation/loss": 1.0, "evaluation/psnr": 30.0, "evaluation/tokens": 900.0}
    words = tables.tiles([read(tmp_path, [(1, values)])])
    assert "Loss" in words and "PSNR" in words and "Tokens" not in words
    write_run(tmp_path / "other", [(1, values)])
    assert tables.tiles(read_runs(tmp_path)) == ""  # of two such stages, whose?


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(59.4, "59 s"), (61, "1 min 01 s"), (7260, "2 h 01 min"), (90000, "1 d 01 h"), (59.6, "1 min 00 s")],
)
def test_times(seconds, told):
    assert tables.span(seconds) == told


def test_pauses_are_told():
    assert tables.duration([0, 60, 120, 86400, 86460]) == "3 min 00 s, 1 pause"
