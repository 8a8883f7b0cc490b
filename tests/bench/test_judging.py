"""DPG-Bench and GenEval judged by an encoder: the official rule for dependent questions, and what is asked."""

import csv
import json

import pytest
from PIL import Image

from uae_jax import cli
from uae_jax.bench import commands, judging
from uae_jax.bench.judging import Check, dpg_score
from uae_jax.bench.things import several

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
            {
                "include": [
                    {"class": "scissors", "count": 1, "color": "red"},
                    {"class": "wine glass", "count": 2, "position": ["below", 0]},
                ]
            },
            [
                "Is there a pair of scissors in this picture?",
                "Is the pair of scissors red?",
                "Are there exactly 2 wine glasses in this picture?",
                "Are the wine glasses below the pair of scissors?",
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


# Every class of GenEval whose plural is not its name and an s, and some whose is.
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("person", "people"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("sheep", "sheep"),
        ("skis", "pairs of skis"),
        ("wine glass", "wine glasses"),
        ("knife", "knives"),
        ("sandwich", "sandwiches"),
        ("couch", "couches"),
        ("computer mouse", "computer mice"),
        ("scissors", "pairs of scissors"),
        ("toothbrush", "toothbrushes"),
        ("giraffe", "giraffes"),
        ("toy", "toys"),
        ("cherry", "cherries"),  # of other benchmarks
    ],
)
def test_several_of_a_class(name, more):
    assert several(name) == more


@pytest.mark.parametrize(
    ("said", "so"),
    [("Yes.", True), ("**Yes**", True), ("yes, it is", True), ("No.", False), ("Yesterday", False), ("", False)],
)
def test_what_is_a_yes(said, so):
    assert judging.yes(said) == so


class Answerer:
    """Stands for `UAE`: sees dogs nowhere, and red in pictures that are."""

    asked: list[str]

    def iter_answers(self, images, texts, settings, *, seed, first):
        Answerer.asked += texts
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            assert image.size in ((SIDE, SIDE), (56, 56)) and text.endswith(judging.YES_OR_NO)  # or unreadable
            red = image.getpixel((3, 3))[0] > 128
            yield i, "No." if "dog" in text or ("red" in text and not red) else "Yes, it is."


@pytest.fixture(autouse=True)
def answerer(monkeypatch):
    Answerer.asked = []
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


def test_dpg_prompts_that_the_official_code_fails_at_are_left_out(tmp_path, capsys):
    # The first row, which the official code passes over, is a question that the next of its prompt depends on.
    rows = [*QUESTIONS[:2], ("p1", 1, "0", "entity - whole (cup)", "Is there a cup?")]
    write_csv(tmp_path / "dpg_bench.csv", rows)
    images = tmp_path / "images"
    images.mkdir()
    for stem in ("p0", "p1"):
        Image.new("RGB", (2 * SIDE, 2 * SIDE)).save(images / f"{stem}.jpg")  # as others paint them
    assert judge("dpg", tmp_path / "dpg_bench.csv", images, tmp_path / "a.jsonl") == 0
    found = json.loads(capsys.readouterr().out)
    # p1 alone: had p0 counted as wrong, 50.
    assert (found["score"], found["prompts"], found["left_out"], found["missing"]) == (100.0, 1, ["p0"], [])
    assert len(Answerer.asked) == 4  # none about p0
    arguments = ["--questions", str(tmp_path / "dpg_bench.csv"), "--images", str(images)]
    assert cli.main(["bench", "judge", "dpg", *arguments, "--output", str(tmp_path / "a.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "1  prompts left out" in told and "p0" in told and "(95% 100.000 to 100.000)" in told
    write_csv(tmp_path / "dpg_bench.csv", QUESTIONS[:2])
    assert judge("dpg", tmp_path / "dpg_bench.csv", images, tmp_path / "b.jsonl") == 1
    assert "wanted dpg_bench.csv whole" in capsys.readouterr().err


CUP = {"tag": "colors", "include": [{"class": "cup", "count": 1, "color": "red"}], "prompt": "a red cup"}
DOG = {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}


def geneval(folder, *lines, colours=("red", "red", "red", "black"), name="{:05d}"):
    """Metadata of some lines, and pictures in these colours for each."""
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for number in range(len(lines)):
        samples = folder / f"images/{number:05d}/samples"
        samples.mkdir(parents=True, exist_ok=True)
        for copy, colour in enumerate(colours):
            Image.new("RGB", (SIDE, SIDE), colour).save(samples / f"{name.format(copy)}.png")
    return folder / "metadata.jsonl", folder / "images", folder / "a.jsonl"


@pytest.mark.parametrize("name", ["{:05d}", "{:04d}"])  # ours, and what others call them
def test_geneval(tmp_path, capsys, name):
    assert judge("geneval", *geneval(tmp_path, CUP, DOG, name=name)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["by"] == {"colors": 0.75, "single_object": 0.0} and found["score"] == pytest.approx(0.375)
    assert found["pictures"] == 8 and found["unreadable"] == []
    assert found["interval"] == [0.375, 0.375]  # one prompt a tag: drawn anew, it is the same


def test_the_interval_of_geneval_is_that_of_prompts_within_tags():
    records = [{"tag": "one"}, {"tag": "one"}, {"tag": "two"}]
    found = judging.geneval_summary(records, {0: [[True]] * 4, 1: [[False]] * 4, 2: [[True]] * 4})
    # Of tag "one" two prompts are drawn: both wrong, or both right, in a quarter of draws each. Drawing all twelve
    # pictures alike would give 0.50 to 1, and prompts of both tags alike might leave a tag without any.
    assert found["score"] == 0.75 and found["interval"] == (0.5, 1.0)


def test_unreadable_samples_of_geneval_are_wrong(tmp_path, capsys):
    paths = geneval(tmp_path, CUP, colours=["red"] * 4)
    broken = tmp_path / "images/00000/samples/00001.png"
    broken.write_bytes(b"no image")
    assert judge("geneval", *paths) == 1
    found = json.loads(capsys.readouterr().out)
    # 3 of 4; without the broken one it would be 3 of 3.
    assert (found["score"], found["pictures"], found["missing"]) == (0.75, 4, [])
    assert found["unreadable"] == [str(broken)]
    broken.unlink()  # how many there are is up to whoever paints
    assert judge("geneval", *paths) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1.0


def test_pictures_that_come_later_or_are_painted_anew_have_their_own_answers(tmp_path, capsys):
    paths = geneval(tmp_path, CUP, CUP, colours=["red"])
    first, second = (tmp_path / f"images/{number:05d}/samples/00000.png" for number in range(2))
    black = Image.new("RGB", (SIDE, SIDE), "black")
    second.rename(tmp_path / "later.png")
    assert judge("geneval", *paths) == 1
    black.save(first.with_name("00002.png"))  # after the one that was asked about
    black.save(first)
    (tmp_path / "later.png").rename(second)
    Answerer.asked = []
    capsys.readouterr()
    assert judge("geneval", *paths) == 0
    found = json.loads(capsys.readouterr().out)
    # The first prompt has two black pictures, the second one that is red. By number the answers to the red picture
    # that was the first would be the first black one's: 2/3.
    assert found["score"] == pytest.approx(1 / 3)
    Answerer.asked = []
    assert judge("geneval", *paths) == 0 and Answerer.asked == []


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "a.csv").write_text("item_id,text\n1,2\n3,4\n")
    (tmp_path / "images").mkdir()
    assert judge("dpg", tmp_path / "a.csv", tmp_path / "images", tmp_path / "a.jsonl") == 1
    assert ":3: not a row of dpg_bench.csv" in capsys.readouterr().err
    write_csv(tmp_path / "b.csv", [QUESTIONS[0], *QUESTIONS])
    assert judge("dpg", tmp_path / "b.csv", tmp_path / "images", tmp_path / "a.jsonl") == 1
    assert "has no picture" in capsys.readouterr().err
