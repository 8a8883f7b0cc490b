"""Questions about images: read, asked once each, and judged leniently where it is only about spelling."""

import json

import pytest
from PIL import Image

from uae_jax import cli
from uae_jax.bench import commands, questions
from uae_jax.bench.questions import Question, chosen, right

ANIMALS = Question(None, "Which animal?", ("a dog", "a cat", "a wild cat"), ("B",))


def free(*answers):
    return Question(None, "How many?", (), answers)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B. a cat", "B"),
        ("B because it purrs", "B"),
        ("The answer is C.", "C"),
        ("Answer: A", "A"),
        ("A dog", "A"),  # by its text: the first letter is an article
        ("It is a cat.", "B"),
        ("It is a wild cat.", "C"),  # which holds "cat", too
        ("a dog or a cat", None),
        ("D", None),  # no such choice
        ("no idea", None),
        ("", None),
    ],
)
def test_what_choice_an_answer_comes_down_to(said, letter):
    assert chosen(ANIMALS, said) == letter
    assert right(ANIMALS, said) == (letter == "B")


@pytest.mark.parametrize(
    ("said", "answers", "fine"),
    [
        ("Two.", ("2",), True),
        ("the Red Cup", ("red cup",), True),
        ("sofa", ("couch", "sofa"), True),
        ("a red cup", ("blue cup",), False),
        ("12", ("2",), False),
        ("", ("2",), False),
    ],
)
def test_free_answers(said, answers, fine):
    assert right(free(*answers), said) == fine


def test_a_choice_question_is_asked_with_letters():
    assert ANIMALS.asked.splitlines() == [
        "Which animal?",
        "A. a dog",
        "B. a cat",
        "C. a wild cat",
        questions.CHOOSE,
    ]
    assert free("2").asked.splitlines() == ["How many?", questions.SHORTLY]


@pytest.mark.parametrize("answer", [1, "B", "cat"])
def test_the_right_choice_is_named_in_three_ways(tmp_path, answer):
    line = {"image": "x.png", "question": "Which?", "choices": ["dog", "cat"], "answer": answer}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    (found,) = questions.read(tmp_path / "q.jsonl")
    assert found.answers == ("B",) and found.image == tmp_path / "x.png"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"image": "x.png", "question": "Which?"}, "has no 'answer'"),
        ({"image": "x.png", "question": "Which?", "choices": ["dog"], "answer": "cat"}, "none of the choices"),
        ({"image": "x.png", "question": "Which?", "choices": ["dog"], "answer": 1}, "none of the choices"),
        ({"image": "x.png", "question": "Which?", "answer": " "}, "answer is empty"),
        ({"image": "x.png", "question": "Which?", "answer": []}, "answer is empty"),
        ({"image": 1, "question": "Which?", "answer": "x"}, "must be texts"),
        ([], "wanted an object"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, wanted):
    good = {"image": "x.png", "question": "Which?", "answer": "x"}
    (tmp_path / "q.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=f":2: .*{wanted}"):
        questions.read(tmp_path / "q.jsonl")


def test_accuracy_by_task_and_their_mean():
    asked = [Question(None, "?", (), (str(i),), "one" if i < 3 else "two") for i in range(4)]
    found = questions.summary(asked, {0: "0", 1: "no", 3: "3"})
    # One of three and one of one; the question without an answer counts as wrong.
    assert found["tasks"] == {"one": pytest.approx(1 / 3), "two": 1.0}
    assert found["task_mean"] == pytest.approx(2 / 3) and found["accuracy"] == 0.5
    assert found["unanswered"] == 1


class Answerer:
    """Stands for `UAE`."""

    asked: list[str]

    def iter_answers(self, images, texts, settings, *, seed, first):
        Answerer.asked += texts
        yield from reversed([(i, "B" if "A. " in text else "two") for i, text in enumerate(texts)])


@pytest.fixture
def file(tmp_path, monkeypatch):
    Answerer.asked = []
    monkeypatch.setattr(commands, "load", lambda args, **more: Answerer())
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    lines = [
        {"image": "x.png", "question": "Which?", "choices": ["dog", "cat"], "answer": "cat", "task": "animals"},
        {"image": "x.png", "question": "How many?", "answer": "2", "task": "counting"},
        {"image": "x.png", "question": "How many?", "answer": "3", "task": "counting"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "q.jsonl"


def bench(file, *more):
    output = file.parent / "answers.jsonl"
    return cli.main(["bench", "vqa", "--questions", str(file), "--output", str(output), "--json", *more])


def test_the_command_asks_judges_and_goes_on(file, capsys):
    assert bench(file) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"] == {"animals": 1.0, "counting": 0.5} and len(Answerer.asked) == 3
    output = file.parent / "answers.jsonl"
    whole = output.read_text()
    assert bench(file) == 0 and len(Answerer.asked) == 3  # nothing is asked twice
    output.write_text(whole[:-9])  # killed within the last line
    assert bench(file) == 0
    assert sorted(output.read_text().splitlines()) == sorted(whole.splitlines())
    capsys.readouterr()
    assert bench(file, "--temperature", "0.5") == 1
    # Two: of one picture "How many?" is asked in two lines, with other right answers.
    assert "2 answers written with other settings" in capsys.readouterr().err


def test_an_unreadable_image_is_told_and_counted(file, capsys):
    (file.parent / "x.png").write_bytes(b"no image")
    assert bench(file) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["unanswered"] == 3 and "x.png" in told.err


def test_other_files_are_not_taken_for_answers(file, capsys):
    (file.parent / "answers.jsonl").write_text("something of mine\n")
    assert bench(file) == 1
    assert "something else" in capsys.readouterr().err
    assert (file.parent / "answers.jsonl").read_text() == "something of mine\n"
