"""GenEval, GenEval++ and DPG-Bench: folders as the official scorers read them, however often painting was stopped."""

import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from uae_jax import cli
from uae_jax.bench import commands, painting
from uae_jax.bench.cli import BENCHMARKS
from uae_jax.bench.grids import grid, quarter
from uae_jax.bench.layouts import LAYOUTS
from uae_jax.engine import CaptionSettings

SIDE = 16
TAGS = ("single_object", "counting", "position")


class Painter:
    """Stands for `UAE`: a painting's grey is its number, so that a file tells which paintings are in it."""

    loaded = 0
    painted: list[int]
    prompts: list[str]

    def __init__(self):
        Painter.loaded += 1
        Painter.painted = []

    defaults = SimpleNamespace(caption=CaptionSettings())
    says, killed_after = "at length", 100

    def iter_answers(self, images, questions, settings, *, seed):
        assert images is None and settings.temperature == 0
        for done, (i, question) in enumerate(reversed(list(enumerate(questions)))):
            if done == self.killed_after:
                raise KeyboardInterrupt
            yield i, f"{self.says}: {question[-5:]}"

    def iter_paintings(self, prompts, settings, *, seed, first):
        Painter.prompts = prompts
        for place in reversed(range(len(prompts))):
            Painter.painted.append(first + place)
            yield place, Image.new("RGB", (SIDE, SIDE), (first + place + 1,) * 3)


@pytest.fixture(autouse=True)
def painter(monkeypatch):
    Painter.loaded, Painter.painted = 0, []
    monkeypatch.setattr(commands, "load", lambda args, **more: Painter())
    monkeypatch.setattr(painting, "WINDOW", 8)


@pytest.fixture
def prompts(tmp_path):
    """Benchmark -> its prompts, of five."""
    lines = [json.dumps({"tag": TAGS[i % 3], "include": [{"class": "cup"}], "prompt": f"cup {i}"}) for i in range(5)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    folder = tmp_path / "prompts"
    folder.mkdir()
    for i in range(5):
        (folder / f"p{i}.txt").write_text(f"a long prompt of a cup, {i}\n")
    return {"geneval": tmp_path / "metadata.jsonl", "genevalpp": tmp_path / "metadata.jsonl", "dpg": folder}


def bench(name, prompts, output, *more):
    return cli.main(["bench", name, "--prompts", str(prompts[name]), "--output", str(output), *more])


def greys(file) -> set[int]:
    return set(np.unique(np.asarray(Image.open(file))))


def test_geneval_as_its_scorer_walks_it(prompts, tmp_path):
    output = tmp_path / "out"
    assert bench("geneval", prompts, output) == 0
    # As evaluate_images.py does: folders of digits, the line that a folder is about, images of digits in `samples`.
    lines = prompts["geneval"].read_text().splitlines()
    folders = sorted(path for path in output.iterdir() if path.is_dir() and path.name.isdigit())
    assert [path.name for path in folders] == [f"{i:05d}" for i in range(5)]
    for i, folder in enumerate(folders):
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(lines[i])
        images = sorted(path for path in (folder / "samples").iterdir() if re.match(r"\d+\.png", path.name))
        assert [greys(image) for image in images] == [{4 * i + copy + 1} for copy in range(4)]


def test_genevalpp_as_its_judge_asks_for_it(prompts, tmp_path):
    assert bench("genevalpp", prompts, tmp_path / "out") == 0
    for number in range(1, 6):  # of the line, from 1
        with Image.open(tmp_path / f"out/image/{number}.jpg") as image:
            assert image.format == "JPEG"


def test_dpg_as_its_scorer_cuts_it(prompts, tmp_path):
    output = tmp_path / "out"
    assert bench("dpg", prompts, output) == 0
    files = sorted(output.iterdir())  # whatever is there is taken for a grid
    assert [file.name.split(".")[0] for file in files] == [f"p{i}" for i in range(5)]
    for i, file in enumerate(files):
        image = Image.open(file)
        assert image.size == (2 * SIDE, 2 * SIDE)
        crops = [(0, 0), (SIDE, 0), (0, SIDE), (SIDE, SIDE)]
        found = [image.crop((x, y, x + SIDE, y + SIDE)).getpixel((5, 5))[0] for x, y in crops]
        assert found == [4 * i + copy + 1 for copy in range(4)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_goes_on_where_it_stopped(prompts, tmp_path, name):
    output = tmp_path / "out"
    assert bench(name, prompts, output) == 0
    tasks = LAYOUTS[name].tasks(prompts[name])
    before = {task.file: (output / task.file).read_bytes() for task in tasks}
    assert bench(name, prompts, output) == 0 and Painter.loaded == 1  # nothing to do: no model either
    (output / tasks[-1].file).unlink()
    assert bench(name, prompts, output) == 0 and Painter.loaded == 2
    assert {task.file: (output / task.file).read_bytes() for task in tasks} == before
    # Only the window with the missing file was painted again, under the numbers that it had.
    total = sum(task.copies for task in tasks)
    assert sorted(Painter.painted) == list(range(total - len(Painter.painted), total)) and len(Painter.painted) <= 8


def test_paintings_with_other_settings_are_not_mixed(prompts, tmp_path, capsys):
    assert bench("genevalpp", prompts, tmp_path / "out") == 0
    assert bench("genevalpp", prompts, tmp_path / "out", "--seed", "1") == 1
    assert "has 5 files painted with other settings (seed 0, now 1)" in capsys.readouterr().err


def spoil_geneval(output):
    (output / "00001/metadata.jsonl").write_text('{"tag": "counting", "prompt": "no"}\n')


def spoil_genevalpp(output):
    (output / "image/2.jpg").write_bytes(b"no image")


def spoil_dpg(output):
    (output / "notes.txt").write_text("not a grid")


@pytest.mark.parametrize("spoil", [spoil_geneval, spoil_genevalpp, spoil_dpg])
def test_the_check_finds_what_would_be_misread(prompts, tmp_path, spoil):
    name, output = spoil.__name__.removeprefix("spoil_"), tmp_path / "out"
    assert bench(name, prompts, output) == 0
    assert LAYOUTS[name].check(prompts[name], output) == []
    spoil(output)
    faults = LAYOUTS[name].check(prompts[name], output)
    assert len(faults) == 1 and str(output) in faults[0]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("geneval", "", "no prompts"),
        ("geneval", "a cup\n", ":1: no JSON"),
        ("genevalpp", '{"prompt": 5, "tag": "x"}\n', "wanted an object"),
        ("dpg", "", "folder of .txt"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_painted(tmp_path, capsys, name, content, wanted):
    file = tmp_path / "prompts"
    file.write_text(content)
    assert bench(name, {name: file}, tmp_path / "out") == 1
    assert wanted in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_size_that_the_model_cannot_paint_is_told_before_it_is_loaded(prompts, tmp_path, capsys):
    assert bench("geneval", prompts, tmp_path / "out", "--size", "42") == 1
    assert "size is 42x42, wanted sides in multiples of 8" in capsys.readouterr().err
    assert Painter.loaded == 0 and not (tmp_path / "out").exists()


def test_dpg_refuses_what_its_scorer_would_cut_wrongly(prompts, tmp_path, capsys):
    assert bench("dpg", prompts, tmp_path / "out", "--size", "64x32") == 1
    assert "wanted a square" in capsys.readouterr().err
    (prompts["dpg"] / "a.b.txt").write_text("a cup")
    assert bench("dpg", prompts, tmp_path / "out") == 1
    assert "first dot" in capsys.readouterr().err


def test_rewritten_prompts_are_painted_and_kept(prompts, tmp_path, capsys):
    output = tmp_path / "out"
    assert bench("genevalpp", prompts, output, "--rewrite") == 0
    assert Painter.prompts == [f"at length: cup {i}" for i in range(5)] and Painter.loaded == 1
    assert {"prompt": "cup 4", "rewritten": "at length: cup 4"} in kept_rewrites(tmp_path) and Painter.loaded == 1
    assert bench("genevalpp", prompts, output, "--rewrite") == 0 and Painter.loaded == 1
    assert bench("genevalpp", prompts, output) == 1  # not mixed with paintings of the prompts themselves
    assert "rewrite True, now False" in capsys.readouterr().err


def kept_rewrites(folder):
    return [json.loads(line) for line in (folder / "out.rewritten.jsonl").read_text().splitlines()]


def test_rewriting_that_was_killed_goes_on(prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(Painter, "killed_after", 3)
    assert bench("genevalpp", prompts, tmp_path / "out", "--rewrite") != 0
    before = kept_rewrites(tmp_path)
    assert [line["prompt"] for line in before] == ["cup 4", "cup 3", "cup 2"]  # as they were done
    with (tmp_path / "out.rewritten.jsonl").open("a") as file:
        file.write('{"prompt": "cup 1", "rewri')  # cut off
    monkeypatch.setattr(Painter, "killed_after", 100)
    monkeypatch.setattr(Painter, "says", "again")
    assert bench("genevalpp", prompts, tmp_path / "out", "--rewrite") == 0
    assert kept_rewrites(tmp_path)[:3] == before
    assert sorted(Painter.prompts) == [f"again: cup {i}" for i in range(2)] + [f"at length: cup {i}" for i in (2, 3, 4)]


def test_prompts_that_another_model_rewrote_are_not_painted(prompts, tmp_path, capsys):
    assert bench("genevalpp", prompts, tmp_path / "out", "--rewrite") == 0
    shutil.rmtree(tmp_path / "out")
    assert bench("genevalpp", prompts, tmp_path / "out", "--rewrite", "--dtype", "bfloat16") == 1
    assert "5 rewritten prompts written with other settings (dtype 'auto', now 'bfloat16'; " in capsys.readouterr().err
    (tmp_path / "out.rewritten.jsonl.settings.json").unlink()  # as earlier versions left it
    assert bench("genevalpp", prompts, tmp_path / "out", "--rewrite") == 1
    assert "5 rewritten prompts written, and no" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_paintings_that_do_not_say_who_painted_them_are_left_alone(prompts, tmp_path, capsys, name):
    assert bench(name, prompts, tmp_path / "out") == 0
    (tmp_path / "out.settings.json").unlink()  # others' work, or a folder that was copied without it
    files = [file for file in (tmp_path / "out").rglob("*") if file.suffix in (".png", ".jpg")]
    files[0].unlink()
    told = {file: file.read_bytes() for file in files[1:]}
    assert bench(name, prompts, tmp_path / "out") == 1
    assert f"files painted, and no {tmp_path / 'out.settings.json'} that says with what" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in files[1:]} == told
    (tmp_path / "out.settings.json").write_text('{"model": "ti')
    assert bench(name, prompts, tmp_path / "out") == 1
    assert f"{tmp_path / 'out.settings.json'} holds no settings" in capsys.readouterr().err


def test_what_dpg_would_take_for_a_painting_is_told_before_any_is_painted(prompts, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/.p0.png.part").write_bytes(b"of a run that was killed")
    assert bench("dpg", prompts, tmp_path / "out") == 1
    assert f"{tmp_path / 'out/notes.txt'}: not of this benchmark" in capsys.readouterr().err
    assert not Painter.loaded and not (tmp_path / "out.settings.json").exists()
    (tmp_path / "out/notes.txt").unlink()
    assert bench("dpg", prompts, tmp_path / "out") == 0


def edit_lines(prompts):
    file = prompts["geneval"]
    file.write_text(file.read_text().replace("cup 3", "cup three"))


def edit_folder(prompts):
    (prompts["dpg"] / "p3.txt").write_text("another prompt\n")


@pytest.mark.parametrize(("name", "edit"), [("geneval", edit_lines), ("genevalpp", edit_lines), ("dpg", edit_folder)])
def test_paintings_of_prompts_that_were_edited_are_not_kept(prompts, tmp_path, capsys, name, edit):
    output = tmp_path / "out"
    assert bench(name, prompts, output) == 0
    told = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
    edit(prompts)
    assert bench(name, prompts, output) == 1
    assert re.search("files painted with other settings .tasks '.*', now '", capsys.readouterr().err)
    assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == told


def test_paintings_of_an_earlier_version_are_gone_on_with(prompts, tmp_path):
    """Its settings tell neither the prompts nor the weights; from then on they do."""
    assert bench("genevalpp", prompts, tmp_path / "out") == 0
    settings = tmp_path / "out.settings.json"
    now = json.loads(settings.read_text())
    settings.write_text(json.dumps({k: v for k, v in now.items() if k not in ("weights", "processor", "tasks")}))
    assert bench("genevalpp", prompts, tmp_path / "out") == 0
    assert json.loads(settings.read_text()) == now
    edit_lines(prompts)
    assert bench("genevalpp", prompts, tmp_path / "out") == 1


def test_weights_that_were_trained_in_place_are_another_model(prompts, tmp_path, capsys):
    (tmp_path / "model/dit").mkdir(parents=True)
    weights = tmp_path / "model/dit/diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"some")
    assert bench("genevalpp", prompts, tmp_path / "out", "--model", str(tmp_path / "model")) == 0
    (tmp_path / "model/MODEL_CARD.md").write_text("tells about it")
    assert bench("genevalpp", prompts, tmp_path / "out", "--model", str(tmp_path / "model")) == 0
    weights.write_bytes(b"more")  # of the same size
    assert bench("genevalpp", prompts, tmp_path / "out", "--model", str(tmp_path / "model")) == 1
    assert f"weights '{tmp_path / 'model'} (" in capsys.readouterr().err


def test_lines_of_json_may_hold_what_splits_lines_elsewhere(tmp_path):
    # A raw U+2028 is fine in JSON, and `splitlines` would cut there; editors on Windows begin with a mark.
    line = '{"tag": "counting", "prompt": "two\u2028cups"}'
    (tmp_path / "lines.jsonl").write_text(f"{line}\r\n\r\n{line}\n", encoding="utf-8-sig", newline="")
    assert [task.prompt for task in LAYOUTS["genevalpp"].tasks(tmp_path / "lines.jsonl")] == ["two\u2028cups"] * 2
    (tmp_path / "p0.txt").write_text("one\n\ncup\n", encoding="utf-8-sig")
    assert [task.prompt for task in LAYOUTS["dpg"].tasks(tmp_path)] == ["one\n\ncup"]
    (tmp_path / "lines.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"lines.jsonl: not UTF-8 \(byte 0\)"):
        LAYOUTS["geneval"].tasks(tmp_path / "lines.jsonl")


def test_one_painting_is_no_grid():
    image = Image.new("RGB", (SIDE, SIDE))
    assert grid([image]) is image


def test_a_grid_is_cut_as_it_was_joined():
    images = [Image.new("RGB", (SIDE, SIDE), (number, 0, 0)) for number in range(4)]
    whole = grid(images)
    assert [quarter(whole, number).tobytes() for number in range(4)] == [image.tobytes() for image in images]


def test_there_is_a_command_for_each_layout():
    assert {name for name, *_ in BENCHMARKS} == set(LAYOUTS)
