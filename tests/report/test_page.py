"""The whole page: one file, whatever the run holds; and what it may overwrite."""

import json

import pytest

from tests.report.workdirs import Page, noise, write_run
from uae_jax import cli
from uae_jax.report import page

EVIL = "</pre><script>alert(1)</script><img src=x onerror=alert(1)> http://example.com/\ud800"


def stages(folder):
    """Three stages, the last under way."""
    first = {"loss": 2.0, "evaluation/loss": 2.5, "evaluation/caption_words": 20.0}
    second = {"reward": 0.5, "evaluation/unified": 0.4, "evaluation/caption_words": 40.0, "ratio_mean/0": 1.0}
    write_run(folder / "1_a", [(50, first), (100, first)], pictures={"captions": [50, 75, 100]})
    write_run(folder / "2_b/1_c", [(100, second)], stage="gen_for_understanding", pictures={"loop": [100]})
    write_run(folder / "2_b/2_d", [(10, second | {"evaluation/unified": 0.6})], steps=500, done=False)
    return folder


def test_a_run_of_several_stages(tmp_path):
    file = page.write(stages(tmp_path / "run"))
    assert file == tmp_path / "run" / "report.html"
    report = Page(file.read_text())
    assert report.having("html", lang="en") and report.text.startswith("run · report")
    for words in ("3 stages, 2 done", "From stage to stage", "2_b/1_c", "under way", "step 10 of 500", "Configuration"):
        assert words in report.text
    assert [attrs["id"] for attrs in report.having("h2") if "id" in attrs] == ["stage-1", "stage-2", "stage-3"]
    assert {attrs["href"] for attrs in report.having("a")} == {"#stage-1", "#stage-2", "#stage-3"}
    assert len(report.images) == 4 and len(report.having("script")) == 1
    assert list(tmp_path.rglob("*.part")) == []


def test_nothing_is_loaded_from_anywhere(tmp_path):
    source = page.write(stages(tmp_path)).read_text()
    assert "http" not in source.replace("http-equiv", "")
    assert "default-src 'none'; img-src data:" in source


def test_one_stage_has_no_table_of_stages_to_compare(tmp_path):
    write_run(tmp_path / "run", [(100, {"loss": 1.0})])
    words = Page(page.write(tmp_path / "run").read_text()).text
    assert "1 stage, done" in words and "From stage to stage" not in words


def test_a_run_that_has_just_begun(tmp_path):
    write_run(tmp_path / "run", [], done=False)
    words = Page(page.write(tmp_path / "run").read_text()).text
    assert "1 stage, under way" in words and "No reading yet." in words


def test_what_comes_from_data_is_escaped(tmp_path):
    folder = tmp_path / "<b>run"
    write_run(folder / "<i>1", [(1, {EVIL: 1.0, f"evaluation/{EVIL}": 2.0, "loss": 1.0})], stage=EVIL, note=EVIL)
    (folder / "<i>1" / "pictures" / "<u>").mkdir(parents=True)
    noise(32, 32).save(folder / "<i>1" / "pictures" / "<u>" / "00000001.png")
    file = page.write(folder)
    report = Page(file.read_text(encoding="utf-8"))  # half a surrogate pair would not have passed
    assert len(report.having("script")) == 1 and len(report.images) == 1
    assert not any(report.having(tag) for tag in ("i", "u"))
    shown = EVIL.replace("\ud800", "\\ud800")
    assert report.text.count(shown) >= 3


def test_the_size_of_a_large_report(tmp_path):
    # 40 pictures that do not compress, together more than 19 MB, and 3000 readings of 20 metrics in each stage.
    lines = [(step, {f"metric_{i}": (step * 37 % 101) / 7 for i in range(20)}) for step in range(1, 3001)]
    hard = noise(400, 400)
    for stage in range(2):
        pictures = {"a": range(0, 3000, 300), "b": range(0, 3000, 300)}
        folder = write_run(tmp_path / f"{stage}", lines, steps=3000, pictures=pictures)
        for file in folder.glob("pictures/*/*.png"):
            hard.save(file)
    size = page.write(tmp_path).stat().st_size
    assert size < 13_500_000  # 12 MB of images at most, and the curves


def test_earlier_reports_are_replaced_and_nothing_else(tmp_path):
    write_run(tmp_path / "run", [(1, {"loss": 1.0})])
    file = page.write(tmp_path / "run")
    file.write_text(file.read_text() + "old")
    assert page.write(tmp_path / "run") == file and not file.read_text().endswith("old")

    for mine in ("mine", "", "<!DOCTYPE html>\n<html>" + "x" * 1000 + page.MARK):
        file.write_text(mine)
        with pytest.raises(FileExistsError, match=r"is no report and would be overwritten; .*--force"):
            page.write(tmp_path / "run")
        assert file.read_text() == mine
    page.write(tmp_path / "run", force=True)
    assert page.MARK in file.read_text()[:200]
    with pytest.raises(ValueError, match="is a folder, wanted a file"):
        page.write(tmp_path / "run", tmp_path / "run", force=True)


def test_a_report_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    write_run(tmp_path / "run", [(1, {"loss": 1.0})])
    file = page.write(tmp_path / "run")
    before = file.read_text()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space"):
        page.write(tmp_path / "run")
    assert file.read_text() == before
    assert [found.name for found in (tmp_path / "run").glob(".*")] == []


def test_the_command(tmp_path, capsys):
    stages(tmp_path / "run")
    output = tmp_path / "new" / "tiny.html"
    assert cli.main(["report", str(tmp_path / "run"), "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    assert "3 stages" in Page(output.read_text()).text
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_the_command_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith(f"uae: error: {tmp_path / 'empty'}: no run in it, wanted the --workdir of")

    write_run(tmp_path / "run", [(1, {"loss": 1.0})])
    (tmp_path / "mine.html").write_text(json.dumps("mine"))
    arguments = ["report", str(tmp_path / "run"), "--output", str(tmp_path / "mine.html")]
    assert cli.main(arguments) == 1
    assert "--force" in capsys.readouterr().err and (tmp_path / "mine.html").read_text() == '"mine"'
    assert cli.main([*arguments, "--force"]) == 0
