"""Answers are those to what is asked now, and an interrupted run ends as one that was not."""

import json

import pytest
from PIL import Image

from uae_jax.bench import asking
from uae_jax.bench.asking import Item, ask
from uae_jax.engine import CaptionSettings

GREEDY = CaptionSettings(temperature=0)
DRAWN = CaptionSettings(temperature=1)


class Model:
    """Answers with what an answer depends on: colour, question, and, where it is drawn, the number."""

    def __init__(self):
        self.loaded, self.asked = 0, []

    def load(self):
        self.loaded += 1
        return self

    def iter_answers(self, images, texts, settings, *, seed, first):
        self.asked.append((first, list(texts)))
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            number = f" {first + place}" if settings.temperature else ""
            yield place, f"{text} {image.getpixel((0, 0))[0]}{number}"


@pytest.fixture
def model():
    return Model()


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(asking, "WINDOW", 2)


def paint(folder, name, red):
    Image.new("RGB", (16, 16), (red, 0, 0)).save(folder / name)


@pytest.fixture
def folder(tmp_path):
    for number in range(4):
        paint(tmp_path, f"{number}.png", 10 * number)
    return tmp_path


def test_answers_that_do_not_say_who_gave_them_are_nobodys(model, folder):
    run(model, items(folder, 0), folder)
    (folder / "a.jsonl.settings.json").unlink()
    with pytest.raises(ValueError, match=r"1 answers written, and no .*a.jsonl.settings.json that says with what"):
        run(model, items(folder, 0, 1), folder)


def items(folder, *numbers):
    return [Item(folder / f"{number}.png", f"q{number}") for number in numbers]


def run(model, asked, folder, settings=GREEDY):
    return ask(model.load, asked, folder / "a.jsonl", settings, 0, {})


@pytest.mark.parametrize("settings", [GREEDY, DRAWN])
def test_what_changes_between_runs_is_as_if_all_were_asked_now(folder, model, settings):
    run(model, items(folder, 0, 2, 3), folder, settings)
    paint(folder, "2.png", 99)
    again = run(model, items(folder, 3, 1, 2, 0), folder, settings)
    (folder / "a.jsonl").unlink()
    assert again == run(Model(), items(folder, 3, 1, 2, 0), folder, settings)
    assert again[2].startswith("q2 99")


def test_an_answer_that_is_not_drawn_is_kept_wherever_its_question_goes(folder, model):
    run(model, items(folder, 0, 1), folder)
    (folder / "other").mkdir()
    for number in (0, 1):
        (folder / f"{number}.png").rename(folder / f"other/{number}.png")
    assert run(model, items(folder / "other", 1, 0), folder) == {0: "q1 10", 1: "q0 0"}
    assert model.loaded == 1


def test_a_window_that_was_cut_off_is_asked_whole(folder, model):
    whole = run(model, items(folder, 0, 1, 2, 3), folder)
    lines = (folder / "a.jsonl").read_text().splitlines(keepends=True)
    (folder / "a.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    assert run(model, items(folder, 0, 1, 2, 3), folder) == whole
    assert model.asked[2:] == [(2, ["q2", "q3"])]
    assert (folder / "a.jsonl").read_text() == "".join(lines)


def test_nothing_is_asked_for_the_sake_of_unreadable_images(folder, model, capsys):
    (folder / "0.png").write_bytes(b"no image")
    (folder / "3.png").unlink()
    quarters = [Item(folder / "3.png", "q3", number) for number in range(2)]
    asked = [*items(folder, 0, 1), *quarters]
    assert run(model, asked, folder, DRAWN) == {1: "q1 10 1"}  # drawn by its number although no other was read
    assert len(model.asked) == 1  # the second window has none
    told = capsys.readouterr().err
    assert told.count("0.png") == told.count("3.png") == 1
    assert run(model, asked, folder, DRAWN) == {1: "q1 10 1"}
    assert model.loaded == 1


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"number": 0, "answer": "yes"}, "do not say which image they are about, as an earlier version"),
        ({"number": 0, "caption": "a cup"}, "something else than answers"),
        ([], "something else than answers"),
    ],
)
def test_other_files_are_left_alone(folder, model, line, wanted):
    text = json.dumps(line) + "\n"
    (folder / "a.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"a.jsonl.*{wanted}.*choose another --output"):
        run(model, items(folder, 0), folder)
    assert (folder / "a.jsonl").read_text() == text
