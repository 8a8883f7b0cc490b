"""Questions about images: read, asked once each, and judged leniently where it is only about spelling."""

import json

import pytest
from PIL import Image

from uae_jax import cli
from uae_jax.bench import accuracy, commands, questions
from uae_jax.bench.questions import Question, right

ANIMALS = Question(None, "Which animal?", ("a dog", "a cat", "a wild cat"), ("B",))


def free(*answers):
    return Question(None, "How many?", (), answers)


def test_a_choice_is_right_by_its_letter_or_its_text():
    assert right(ANIMALS, "**B**") and right(ANIMALS, "It is a cat.") and not right(ANIMALS, "A")


@pytest.mark.parametrize(
    ("said", "answers", "fine"),
    [
        ("Two.", ("2",), True),
        ("the Red Cup", ("red cup",), True),
        ("sofa", ("couch", "sofa"), True),
        ("a red cup", ("blue cup",), False),
        ("-5", ("5",), False),
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


def written(file, *lines):
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


CAT = {"image": "x.png", "question": "Which?", "choices": ["dog", "cat"], "answer": "cat"}
WORD = {"image": "x.png", "question": "Which?", "answer": "x"}


@pytest.mark.parametrize("answer", [1, "B", "cat"])
def test_the_right_choice_is_named_in_three_ways(tmp_path, answer):
    (found,) = questions.read(written(tmp_path / "q.jsonl", CAT | {"answer": answer}))
    assert found.answers == ("B",) and found.image == tmp_path / "x.png"


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        ([0, 1, 2], 1, "B"),  # by its number and by its text alike
        ([5, 6, 7], 7, "C"),  # there is no choice of that number
        ([1, 2, 3], "2", "B"),  # a text is no number
        (["B", "A"], 0, "A"),  # a number is no letter
        (["A", "B"], "A", "A"),
    ],
)
def test_what_can_be_meant_in_one_way_is_taken(tmp_path, choices, answer, letter):
    (found,) = questions.read(written(tmp_path / "q.jsonl", CAT | {"choices": choices, "answer": answer}))
    assert found.answers == (letter,)


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"image": "x.png", "question": "Which?"}, "has no 'answer'; .* got image, question"),
        (CAT | {"choices": ["dog"]}, "none of the choices"),
        (CAT | {"choices": ["dog"], "answer": 1}, "none of the choices"),
        (CAT | {"answer": -1}, "none of the choices"),
        (CAT | {"answer": None}, "answer is null"),
        # Number 2 is C, the text "2" is B; the text "A" is B, the letter A.
        (CAT | {"choices": [1, 2, 3, 4], "answer": 2}, "may be choice B or C; write its letter"),
        (CAT | {"choices": ["B", "A"], "answer": "A"}, "may be choice A or B; write its number"),
        (CAT | {"choices": {"A": "dog", "B": "cat"}}, "wanted a list"),
        (CAT | {"choices": "abc"}, "wanted a list"),
        (CAT | {"choices": ["dog", None]}, "a choice is null"),
        (WORD | {"options": ["x", "y"]}, "'options'; rename it to 'choices'"),
        (WORD | {"choices": None, "Choises": ["x", "y"]}, "'Choises'; rename it to 'choices'"),
        (WORD | {"A": "x", "B": "y"}, "'A'; rename it to 'choices'"),
        (WORD | {"tasks": "animals"}, "'tasks'; rename it to 'task'"),
        (WORD | {"answer": " "}, "answer is empty"),
        (WORD | {"answer": []}, "answer is empty"),
        (WORD | {"answer": None}, "answer is null"),
        (WORD | {"answer": ["x", True]}, "answer is true, wanted a text or a number"),
        (WORD | {"image": 1}, "must be texts"),
        ([], "wanted an object"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, wanted):
    with pytest.raises(ValueError, match=f":2: .*{wanted}"):
        questions.read(written(tmp_path / "q.jsonl", WORD, line))


def test_what_is_of_no_use_is_passed_over(tmp_path):
    more = {"id": 7, "question_id": 7, "category": "animals", "image_size": [1, 1], "task": None, "choices": []}
    (found,) = questions.read(written(tmp_path / "q.jsonl", WORD | more))
    assert (found.choices, found.task) == ((), "")


def test_a_line_ends_where_json_has_it_end(tmp_path):
    line = json.dumps(WORD | {"question": "One\u2028two?"}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_text(f"\ufeff{line}\r\n{line}\n", encoding="utf-8")  # a mark of byte order before it
    assert [found.text for found in questions.read(tmp_path / "q.jsonl")] == ["One\u2028two?"] * 2


class Answerer:
    """Stands for `UAE`."""

    asked: list[str]
    settings = None

    def iter_answers(self, images, texts, settings, *, seed, first):
        Answerer.asked += texts
        Answerer.settings = settings
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


def shares(found):
    return {task: row["accuracy"] for task, row in found["tasks"].items()}


def bench(file, *more):
    output = file.parent / "answers.jsonl"
    return cli.main(["bench", "vqa", "--questions", str(file), "--output", str(output), "--json", *more])


def test_the_command_asks_judges_and_goes_on(file, capsys):
    assert bench(file) == 0
    found = json.loads(capsys.readouterr().out)
    assert shares(found) == {"animals": 1.0, "counting": 0.5} and len(Answerer.asked) == 3
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


def test_answers_are_short_and_the_likeliest(file, capsys):
    # Captions of published weights are drawn, at a temperature of 0.7, and have up to 512 tokens.
    assert bench(file) == 0
    assert (Answerer.settings.temperature, Answerer.settings.max_new_tokens) == (0, 16)
    (file.parent / "answers.jsonl").unlink()
    assert bench(file, "--temperature", "0.5", "--max-new-tokens", "99") == 0
    assert (Answerer.settings.temperature, Answerer.settings.max_new_tokens) == (0.5, 99)
    for command in ("vqa", "judge"):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            cli.main(["bench", command, "--help"])
        told = " ".join(capsys.readouterr().out.split())
        assert "(default: 16, a short phrase)" in told and "above, draws (default: 0)" in told


def test_an_unreadable_image_is_told_and_counted(file, capsys):
    (file.parent / "x.png").write_bytes(b"no image")
    assert bench(file) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["unanswered"] == 3 and told.err.count("x.png") == 1  # of three questions about it


def test_what_is_printed(file, capsys):
    output = file.parent / "answers.jsonl"
    assert cli.main(["bench", "vqa", "--questions", str(file), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # Wilson: 1 of 1 may as well be a share of 0.207, 1 of 2 one of 0.095; the mean of both tasks is 3/4.
    assert lines[0].split() == ["1.000", "[0.207,", "1.000]", "1", "animals"]
    assert lines[1].split() == ["0.500", "[0.095,", "0.905]", "2", "counting"]
    assert lines[2].split()[0] == "0.750" and lines[2].endswith("tasks' mean")
    assert lines[3].split()[0] == "0.667" and lines[3].endswith("3  all questions")


def test_edited_questions_keep_their_own_answers(file, capsys):
    assert bench(file) == 0
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[2], lines[0]]))  # one swapped with another, one gone
    capsys.readouterr()
    assert bench(file) == 0
    found = json.loads(capsys.readouterr().out)
    # By number the choice would have the answer "two", which is none, and a question too few -1 unanswered.
    assert shares(found) == {"animals": 1.0, "counting": 0.0} and found["unanswered"] == 0
    assert len(Answerer.asked) == 3


def test_two_runs_are_compared_question_by_question(file, tmp_path, capsys):
    summaries = [tmp_path / f"{name}.summary.json" for name in ("answers", "later")]
    assert bench(file) == 0
    asked = questions.read(file)
    asked.append(Question(None, "?", (), ("1",), "else", key="new"))
    said = {0: "A", 1: "two", 2: "three", 3: "1"}
    summaries[1].write_text(json.dumps(accuracy.summary(asked, said)))
    capsys.readouterr()
    assert cli.main(["bench", "compare", *map(str, summaries), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {task: (row["questions"], row["first"], row["second"]) for task, row in found["tasks"].items()}
    assert rows == {"animals": (1, 1.0, 0.0), "counting": (2, 0.5, 1.0)}  # what one alone was asked is left out
    assert found["alone"] == [0, 1]
    assert found["overall"]["difference"] == pytest.approx(0) and found["overall"]["questions"] == 3
    assert found["task_mean"]["difference"] == pytest.approx((-1 + 0.5) / 2)
    # The first task's one difference is always -1, the second's mean of two, 0 and 1, from 0 to 1.
    assert found["task_mean"]["interval"] == [-0.5, 0.0]
    assert cli.main(["bench", "compare", *map(str, summaries)]) == 0
    printed = capsys.readouterr().out
    assert "-1.000" in printed and "0 questions of the first alone, 1 of the second" in printed
    before = json.loads(summaries[0].read_text())
    summaries[0].write_text(json.dumps({name: value for name, value in before.items() if name != "judged"}))
    assert cli.main(["bench", "compare", *map(str, summaries)]) == 1
    assert "an earlier version wrote it" in capsys.readouterr().err


def test_other_files_are_not_taken_for_answers(file, capsys):
    (file.parent / "answers.jsonl").write_text("something of mine\n")
    assert bench(file) == 1
    assert "something else" in capsys.readouterr().err
    assert (file.parent / "answers.jsonl").read_text() == "something of mine\n"
