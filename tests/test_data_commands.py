"""`uae data inspect` and `uae data caption`: what goes to stdout, stderr and disk, and exit codes."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from tests.data.sources.checks import png
from uae_jax import cli, commands, data_commands
from uae_jax.data.images import open_image


@pytest.fixture
def folder(tmp_path):
    """Six pictures, a broken one among them, and texts of four."""
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for number, name in enumerate(("a", "b", "c", "deep/d", "e", "f")):
        (root / f"{name}.png").write_bytes(png(number))
        if number < 4:
            (root / f"{name}.txt").write_text(f"picture number {number}")
    (root / "b.png").write_bytes(b"<html>404</html>")
    return root


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs a command: (exit code, stdout, stderr). The model "m" is an empty folder."""
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)

    def run(*args):
        code = cli.main(["data", *map(str, args)])
        return (code, *capsys.readouterr())

    return run


# -- inspect


def test_inspect_prints_a_table_and_writes_a_page(run, folder, tmp_path):
    code, out, err = run("inspect", folder, "--output", tmp_path / "report")
    assert code == 0
    assert "records 6, inspected 6, used 3, skipped 3 (50.00%)" in out
    assert "6/6" in err and "record/s" in err  # progress with a rate, and not on stdout
    assert "<html" in (tmp_path / "report" / "contact_sheet.html").read_text()
    facts = json.loads((tmp_path / "report" / "inspection.json").read_text())
    skipped = {kind: entry["first"] for kind, entry in facts["tally"]["skipped"].items()}
    assert skipped == {
        "image unreadable": [str(folder / "b.png")],
        "caption missing": [str(folder / "e.png"), str(folder / "f.png")],
    }
    code, out, _ = run("inspect", folder, "--json")
    assert json.loads(out) == facts


def test_inspect_overwrites_only_when_forced(run, folder, tmp_path):
    assert run("inspect", folder, "--output", tmp_path)[0] == 0
    (tmp_path / "contact_sheet.html").write_text("mine")
    code, _, err = run("inspect", folder, "--output", tmp_path)
    assert code == 1 and "would be overwritten" in err
    assert (tmp_path / "contact_sheet.html").read_text() == "mine"
    assert run("inspect", folder, "--output", tmp_path, "--force")[0] == 0


def test_inspect_says_why_records_are_bad_and_what_training_allows(run, folder):
    code, out, err = run("inspect", folder)
    assert code == 0 and f"image unreadable: {folder}/b.png: not an image" in out
    assert f"caption missing: {folder}/e.png: no caption" in out
    assert "3 of 6 records are bad (50%); training ends where more than 10% are (data.max_bad_fraction)" in err
    assert "stages that need no captions can use 5" in err


def test_inspect_names_the_columns_where_none_is_called_as_captions_are(run, folder):
    (folder / "t.jsonl").write_text('{"image": "a.png", "words": "x"}\n')
    code, _, err = run("inspect", folder / "t.jsonl")
    assert code == 0 and "name those that are, --captions COLUMN; all: image, words" in err
    assert "--captions" not in run("inspect", folder / "t.jsonl", "--captions", "words")[2]


def test_inspect_of_nothing_usable_fails(run, folder):
    (folder / "t.jsonl").write_text('{"image": "none.png", "caption": "x"}\n')
    code, out, err = run("inspect", folder / "t.jsonl")
    assert code == 1 and f"t.jsonl:1: {folder}/none.png: no such file" in out and "nothing usable in" in err
    assert "--captions" not in err  # there is one


def test_inspect_prints_before_it_writes_and_tries_the_output_before_it_reads(run, folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(data_commands, "inspect_source", None)
        code, _, err = run("inspect", folder, "--output", tmp_path / "file/below")
        assert code == 1 and "below: cannot be made (Not a directory); choose another --output" in err
    monkeypatch.setattr(data_commands.contact_sheet, "to_html", None)
    with pytest.raises(TypeError):
        run("inspect", folder, "--output", tmp_path / "report")


def test_inspect_the_scene_world_with_a_limit(run):
    code, out, _ = run("inspect", "scenes", "--limit", "3", "--captions", "tag", "long", "--json")
    facts = json.loads(out)
    assert (code, facts["inspected"], facts["used"], list(facts["captions"])) == (0, 3, 3, ["tag", "long"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "nowhere: nothing there"),
        (["FOLDER", "--limit", "0"], "--limit is 0, wanted at least 1"),
        (["FOLDER", "--captions", "txt"], "no caption field 'txt', the nearest is 'caption'"),
        (["FOLDER", "--model", "FOLDER"], "no tokenizer.json in it"),
        (["FOLDER", "--kind", "tfds"], "no such data set"),
    ],
)
def test_what_inspect_cannot_do_is_one_line(run, folder, args, message):
    code, out, err = run("inspect", *(folder if arg == "FOLDER" else arg for arg in args))
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1 and message in err


def test_tokens_are_counted_as_plain_text(run, folder, uae_checkpoint):
    (folder / "a.txt").write_text("<|im_end|>")
    code, out, _ = run("inspect", folder, "--model", uae_checkpoint[0], "--json")
    tokens = json.loads(out)["captions"]["caption"]["tokens"]["summary"]
    assert code == 0
    # One special token would be 1; spelt out it is several. The other captions are three words and a number.
    assert tokens["min"] >= 3


def test_wrong_usage(capsys):
    for args in (["data"], ["data", "look"], ["data", "inspect"], ["data", "inspect", "x", "--kind", "pickle"]):
        with pytest.raises(SystemExit) as error:
            cli.main(args)
        assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        cli.main(["data", "caption", "x", "--output", "y", "--txt"])
    assert error.value.code == 2
    capsys.readouterr()


HELP = """
import sys
from uae_jax import cli
try:
    cli.main(["data", "inspect", "--help"])
finally:
    print([name for name in ("jax", "grain", "tensorflow_datasets", "pyarrow") if name in sys.modules])
"""


def test_help_answers_without_importing_jax():
    out = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True).stdout
    assert "SOURCE" in out and out.splitlines()[-1] == "[]"


# -- caption


class FakeUAE:
    """Writes captions that tell the image, the seed and the number the image was drawn with."""

    def __init__(self, stop_after=None):
        self.written, self.stop_after = 0, stop_after

    def iter_captions(self, images, settings, *, seed, first):
        for place in reversed(range(len(images))):  # not in order
            if self.written == self.stop_after:
                raise KeyboardInterrupt
            self.written += 1
            yield place, f"picture {images[place].getpixel((0, 0))[0]}, seed {seed}, number {first + place}"


@pytest.fixture
def model(monkeypatch):
    """Has `uae data caption` load the fake; sets how many captions it writes before it is interrupted."""

    def use(stop_after=None):
        fake = FakeUAE(stop_after)
        monkeypatch.setattr(commands, "load", lambda args, **_: fake)
        return fake

    return use


def lines(path):
    return {record["image"]: record["caption"] for record in map(json.loads, path.read_text().splitlines())}


# Good images in order: a, c, deep/d, e, f; the broken b has no number.
WANTED = {
    "a.png": "picture 0, seed 3, number 0",
    "c.png": "picture 2, seed 3, number 1",
    "deep/d.png": "picture 3, seed 3, number 2",
    "e.png": "picture 4, seed 3, number 3",
    "f.png": "picture 5, seed 3, number 4",
}


def test_captions_of_a_folder(run, folder, model):
    model()
    code, out, err = run("caption", folder, "--model", "m", "--seed", "3")
    assert code == 1  # one image was skipped
    assert lines(folder / "captions.jsonl") == WANTED
    assert f"skipped: {folder / 'b.png'}: not an image" in err
    assert err.splitlines()[-1] == "uae: 5 captioned, 1 skipped"
    assert f"{folder / 'a.png'}\tpicture 0, seed 3, number 0" in out.splitlines()
    assert run("inspect", folder / "captions.jsonl", "--json")[0] == 0


@pytest.mark.parametrize("window", [1, 2, 64])
def test_interrupted_anywhere_the_result_is_the_same(run, folder, model, monkeypatch, window):
    monkeypatch.setattr(data_commands, "WINDOW", window)
    for stop_after in range(5):
        output = folder.parent / f"{stop_after}.jsonl"
        args = ("caption", folder, "--model", "m", "--seed", "3", "--output", output)
        model(stop_after)
        assert run(*args)[0] == 1
        rest = model()
        assert run(*args)[0] == 1
        assert rest.written == 5 - stop_after  # nothing is done twice
        assert lines(output) == {f"photos/{name}": text for name, text in WANTED.items()}


def test_what_is_done_needs_no_model(run, folder, model, monkeypatch):
    (folder / "b.png").unlink()
    model()
    assert run("caption", folder, "--model", "m")[0] == 0
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    code, out, err = run("caption", folder, "--model", "m")
    assert (code, out, err) == (0, "", "uae: 5 of 5 have their captions\n")
    code, _, err = run("caption", folder, "--model", "m", "--temperature", "0.1")
    assert code == 1 and "temperature 0.7, now 0.1" in err


def test_texts_beside_the_images(run, folder, model):
    (folder / "b.png").unlink()
    model()
    assert run("caption", folder, "--model", "m", "--txt")[0] == 0
    assert (folder / "a.txt").read_text() == "picture number 0"  # was there
    assert (folder / "f.txt").read_text() == "picture 5, seed 0, number 4\n"
    assert not (folder / "captions.jsonl").exists()


def test_what_caption_cannot_do_is_told_before_the_model_is_loaded(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "none").mkdir()
    for args, message in (
        ((folder / "a.png",), "no folder"),
        ((tmp_path / "none",), "no image in it"),
        ((folder, "--temperature", "-1"), "temperature"),
        ((folder, "--output", folder / "a.txt"), "a.txt:1: not a line of images and captions"),
    ):
        (folder / "a.txt").write_text("mine\n")
        code, _, err = run("caption", *args, "--model", "m")
        assert code == 1 and message in err


def test_two_images_are_not_given_one_text(run, folder, model, monkeypatch):
    (folder / "f.jpg").write_bytes(png(6))
    (folder / "a.jpg").write_bytes(png(7))  # a.txt is there already, and stays
    with monkeypatch.context() as patch:
        patch.setattr(commands, "load", lambda *_, **__: pytest.fail("the model was loaded"))
        code, _, err = run("caption", folder, "--model", "m", "--txt")
    assert code == 1 and not (folder / "f.txt").exists()
    assert f"{folder}/f.jpg and {folder}/f.png: captions of both would be f.txt; rename one" in err
    model()
    assert run("caption", folder, "--model", "m")[0] == 1  # for b alone, which is broken
    assert len(lines(folder / "captions.jsonl")) == 7


@pytest.mark.slow
def test_a_real_model_writes_the_same_whether_interrupted_or_not(run, folder, small_uae, uae_checkpoint, monkeypatch):
    monkeypatch.setattr(commands, "load", lambda args, **_: small_uae)
    options = ["--question", "What?", "--max-new-tokens", "4", "--temperature", "1", "--seed", "3", "--model", "m"]
    for name in ("a", "c"):  # larger than the model's patches
        with Image.open(folder / f"{name}.png") as image:
            image.resize((56, 56)).save(folder / f"{name}.png")
    images = [open_image(folder / f"{name}.png") for name in ("a", "c", "deep/d", "e", "f")]
    wanted = small_uae.caption(images, "What?", max_new_tokens=4, temperature=1, seed=3)
    run("caption", folder, *options)
    names = list(WANTED)
    assert lines(folder / "captions.jsonl") == dict(zip(names, wanted, strict=True))
    kept = (folder / "captions.jsonl").read_text().splitlines(keepends=True)
    (folder / "captions.jsonl").write_text("".join(kept[1::2]))  # as if every other one had been lost
    run("caption", folder, *options)
    assert lines(folder / "captions.jsonl") == dict(zip(names, wanted, strict=True))
