"""DPG-Bench and GenEval judged by an encoder: the official rule for dependent questions, and what is asked."""

import csv
import json

import pytest
from PIL import Image

from uae_jax import cli
from uae_jax.bench import commands, judging
from uae_jax.bench.judging import Check, dpg_score

COLUMNS = (
    *("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple"),
    "question_natural_language",
)
QUESTIONS = [
    ("p0", 1, "0", "entity - whole (cup)", "Is there a cup?"),
    ("p0", 2, "1", "attribute - color (cup, red)", "Is the cup red?"),
    ("p1", 1, "0", "entity - whole (dog)", "Is there a dog?"),
]
SIDE = 16


def official(checks, answers):
    """The rule as ELLA's code has it: one dictionary that is changed in the order of the file."""
    scores = dict(zip([c.number for c in checks], map(float, answers), strict=True))
    for check in checks:
        if any(scores[parent] == 0 for parent in check.parents):
            scores[check.number] = 0
    return sum(scores.values()) / len(scores)


@pytest.mark.parametrize(
    ("parents", "answers", "score"),
    [
        (((), (1,), (2,)), (True, True, True), 1.0),
        (((), (1,), (2,)), (True, False, True), 1 / 3),
        (((), (1,), (2,)), (False, True, True), 0.0),  # what was made wrong makes wrong in turn
        (((3,), (), (2,)), (True, False, True), 1 / 3),  # but not what stands before it
        (((), (), (1, 2)), (True, False, True), 1 / 3),
    ],
)
def test_dependent_questions_count_as_the_official_code_has_them(parents, answers, score):
    checks = [Check("?", number, of) for number, of in enumerate(parents, start=1)]
    assert dpg_score(checks, answers) == pytest.approx(score) == official(checks, answers)


@pytest.mark.parametrize(
    ("record", "asked"),
    [
        ({"include": [{"class": "apple", "count": 1}]}, ["Is there an apple in this picture?"]),
        ({"include": [{"class": "cup", "count": 3}]}, ["Are there exactly 3 cups in this picture?"]),
        (
            {"include": [{"class": "cup", "count": 1, "color": "red"}]},
            ["Is there a cup in this picture?", "Is the cup red?"],
        ),
        (
            {"include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["left of", 0]}]},
            [
                "Is there a dog in this picture?",
                "Is there a cup in this picture?",
                "Is the cup to the left of the dog?",
            ],
        ),
        (
            {"include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "position": ["above", 0]}]},
            ["Is there a dog in this picture?", "Is there a cup in this picture?", "Is the cup above the dog?"],
        ),
    ],
)
def test_what_geneval_wants_is_asked(record, asked):
    assert [check.text for check in judging.geneval_checks(record)] == asked


class Answerer:
    """Stands for `UAE`: sees dogs nowhere, and red in pictures that are."""

    def iter_answers(self, images, texts, settings, *, seed, first):
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            assert image.size == (SIDE, SIDE) and text.endswith(judging.YES_OR_NO)
            red = image.getpixel((3, 3))[0] > 128
            yield i, "No." if "dog" in text or ("red" in text and not red) else "Yes, it is."


@pytest.fixture(autouse=True)
def answerer(monkeypatch):
    monkeypatch.setattr(commands, "load", lambda args, **more: Answerer())


def judge(benchmark, questions, images, output):
    paths = ["--questions", str(questions), "--images", str(images), "--output", str(output)]
    return cli.main(["bench", "judge", benchmark, *paths, "--json"])


def write_csv(file, rows):
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        for stem, number, dependency, tuple_, question in rows:
            writer.writerow([stem, "text", "", number, dependency, "", "", tuple_, question])


def test_dpg(tmp_path, capsys):
    # The official code leaves out the first row, whatever is in it.
    write_csv(tmp_path / "dpg_bench.csv", [("x", 1, "0", "entity (x)", "Is there an x?"), *QUESTIONS])
    images = tmp_path / "images"
    images.mkdir()
    grid = Image.new("RGB", (2 * SIDE, 2 * SIDE))
    grid.paste(Image.new("RGB", (SIDE, SIDE), "red"), (SIDE, 0))  # one of four is red
    grid.save(images / "p0.png")
    grid.save(images / "p1.png")
    assert judge("dpg", tmp_path / "dpg_bench.csv", images, tmp_path / "a.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    # p0: one painting 2 of 2, three 1 of 2; p1: no dog.
    assert found["score"] == pytest.approx(100 * ((1 + 3 * 0.5) / 4 + 0) / 2)
    assert found["by"] == {"attribute": 25.0, "entity": 50.0}
    assert "not the official scorer" in found["judge"]
    (images / "p1.png").unlink()
    assert judge("dpg", tmp_path / "dpg_bench.csv", images, tmp_path / "b.jsonl") == 1
    assert json.loads(capsys.readouterr().out)["missing"] == ["p1"]


def test_geneval(tmp_path, capsys):
    lines = [
        {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a red cup"},
        {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for number in range(2):
        folder = tmp_path / f"images/{number:05d}/samples"
        folder.mkdir(parents=True)
        for copy, colour in enumerate(("red", "red", "red", "black")):
            Image.new("RGB", (SIDE, SIDE), colour).save(folder / f"{copy:05d}.png")
    assert judge("geneval", tmp_path / "metadata.jsonl", tmp_path / "images", tmp_path / "a.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == {"colors": 0.75, "single_object": 0.0} and found["score"] == pytest.approx(0.375)
    assert found["pictures"] == 8


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("item_id,text\n1,2\n3,4\n")
    (tmp_path / "images").mkdir()
    assert judge("dpg", tmp_path / "a.csv", tmp_path / "images", tmp_path / "a.jsonl") == 1
    assert ":3: not a row of dpg_bench.csv" in capsys.readouterr().err
    write_csv(tmp_path / "b.csv", [QUESTIONS[0], *QUESTIONS])
    assert judge("dpg", tmp_path / "b.csv", tmp_path / "images", tmp_path / "a.jsonl") == 1
    assert "has no picture" in capsys.readouterr().err
