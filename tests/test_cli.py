"""The commands on a small checkpoint: what goes to stdout and stderr, exit codes, and what is never lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("skimage")

from PIL import Image

from tests.photos import photographs
from uae_jax import UAE, cli, commands
from uae_jax.weights.checkpoint import EMBEDDED

CAPTION = ["--question", "What is here?", "--max-new-tokens", "6", "--temperature", "0"]
PAINT = ["--size", "64", "--steps", "3"]
COMMANDS = ("caption", "generate", "reconstruct", "convert", "export")


@pytest.fixture
def run(small_uae, uae_checkpoint, monkeypatch, capsys):
    """Runs a command on the shared model, compiled programs and all: (exit code, stdout lines, stderr)."""
    monkeypatch.setattr(UAE, "from_pretrained", classmethod(lambda cls, *_, **__: small_uae))

    def run(*args):
        code = cli.main([*map(str, args), "--model", str(uae_checkpoint[0])])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fails a test in which the model would be loaded."""
    monkeypatch.setattr(UAE, "from_pretrained", classmethod(lambda *_, **__: pytest.fail("the model was loaded")))


@pytest.fixture
def photos(tmp_path):
    """A folder of three photographs, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, photo in zip(("a.png", "b.jpg", "c.png"), photographs(), strict=True):
        photo.save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def last(text):
    return text.splitlines()[-1]


def test_a_published_folder_serves_from_loading_to_the_last_line(uae_checkpoint, photos, capsys):
    """Nothing patched: the one test that goes the whole way."""
    args = ["reconstruct", photos / "a.png", "--output", photos.parent / "out", *CAPTION, *PAINT]
    assert cli.main([*map(str, args), "--model", str(uae_checkpoint[0])]) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["image"] == str(photos / "a.png")
    with Image.open(record["painting"]) as painting:
        assert painting.size == (64, 64)
    assert "reading: " in err and "B/s" in err  # a bar in bytes while loading
    assert last(err) == "uae: 1 reconstructed, 0 skipped"


# -- caption


def test_captions_are_a_line_each_in_order(run, photos, small_uae):
    code, out, err = run("caption", photos, *CAPTION)
    assert code == 0
    wanted = small_uae.caption(list(photographs()), "What is here?", max_new_tokens=6, temperature=0)
    names = [str(photos / name) for name in ("a.png", "b.jpg", "c.png")]
    # b is a JPEG, whose pixels differ from the photograph's; the text of the other two is exact but for white space.
    assert [line.split("\t")[0] for line in out] == names
    assert [out[i].split("\t", 1)[1] for i in (0, 2)] == [" ".join(wanted[i].split()) for i in (0, 2)]
    assert last(err) == "uae: 3 captioned, 0 skipped"


def test_progress_with_rate_and_time_left_goes_to_stderr(run, photos):
    _, out, err = run("caption", photos, *CAPTION)
    assert len(out) == 3
    assert "3/3" in err
    assert "image/s" in err or "s/ image" in err  # rate
    assert "<" in err  # elapsed<left


def test_json_is_exact_and_plain_output_one_line_an_image(run, photos, small_uae, monkeypatch):
    text = 'two\nlines\t"and" a tab, é, \u2028'
    monkeypatch.setattr(small_uae, "iter_captions", lambda images, *_, **__: ((i, text) for i in range(len(images))))
    _, out, _ = run("caption", photos / "a.png", *CAPTION)
    assert out == [f'{photos / "a.png"}\ttwo lines "and" a tab, é,']
    _, out, _ = run("caption", photos / "a.png", *CAPTION, "--json")
    assert len(out) == 1
    assert json.loads(out[0]) == {"image": str(photos / "a.png"), "caption": text}


def test_a_bad_image_among_several_is_reported_and_skipped(run, photos):
    (photos / "aa.png").write_bytes(b"<html>404</html>")
    (photos / "bb.png").write_bytes((photos / "a.png").read_bytes()[:1000])
    code, out, err = run("caption", photos, *CAPTION, "--json")
    assert code == 1
    assert [json.loads(line)["image"] for line in out] == [str(photos / n) for n in ("a.png", "b.jpg", "c.png")]
    skipped = [line for line in err.splitlines() if "skipped: " in line]
    assert len(skipped) == 2
    assert f"uae: skipped: {photos / 'aa.png'}: not an image" in err
    assert last(err) == "uae: 3 captioned, 2 skipped"


@pytest.mark.slow
def test_skipping_does_not_change_the_captions_of_others(run, photos, monkeypatch):
    draw = ["--question", "What is here?", "--max-new-tokens", "6", "--temperature", "1", "--seed", "3"]
    _, whole, _ = run("caption", photos, *draw)
    (photos / "0.png").write_bytes(b"")
    monkeypatch.setattr(commands, "WINDOW", 2)
    code, windows, _ = run("caption", photos, *draw)
    assert code == 1
    assert windows == whole


def test_only_bad_images_is_no_crash(run, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    code, out, err = run("caption", tmp_path / "x.png", tmp_path / "none.png")
    assert (code, out) == (1, [])
    assert last(err) == "uae: 0 captioned, 2 skipped"


def test_files_folders_and_patterns(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (photos / "deep").mkdir()
    a, b, c = (photos.relative_to(tmp_path) / name for name in ("a.png", "b.jpg", "c.png"))
    assert commands.image_files(["photos"]) == [a, b, c]
    assert commands.image_files(["photos/*.png"]) == [a, c]
    assert commands.image_files(["photos/c.png", "photos/*.png", "./photos"]) == [c, a, b]  # each once
    assert commands.image_files(["**/*.jpg"]) == [b]
    (photos / "[x].png").write_bytes(b"")
    assert commands.image_files(["photos/[x].png"]) == [photos.relative_to(tmp_path) / "[x].png"]  # no pattern
    with pytest.raises(ValueError, match=r"folders in it are not looked into: 'above/\*\*/\*\.jpg' names what is"):
        (tmp_path / "above").mkdir()
        (tmp_path / "above/deep").mkdir()
        commands.image_files(["above/"])
    for nothing in ("photos/*.gif", "photos/deep"):
        with pytest.raises(ValueError, match="no image there"):
            commands.image_files([nothing])


# -- generate


def test_prompts_become_numbered_images(run, tmp_path, small_uae):
    out = tmp_path / "new" / "out"
    code, lines, err = run("generate", "a cup", "a cat", "x", "--output", out, *PAINT, "--seed", "4")
    assert code == 0
    assert lines == [str(out / f"0000{i}.png") for i in range(3)]
    assert sorted(out.iterdir()) == [out / f"0000{i}.png" for i in range(3)]  # and nothing unfinished
    wanted = small_uae.generate(["a cup", "a cat", "x"], size=64, steps=3, seed=4)
    for file, image in zip(lines, wanted, strict=True):
        assert np.array_equal(Image.open(file), image)
    assert last(err) == "uae: 3 painted, 0 skipped"


def test_prompts_from_a_file_plain_and_json(run, tmp_path):
    file = tmp_path / "prompts"
    text = "a \u2028 cup"  # a line break to Python, not to JSON
    file.write_text(
        f'\ufeffa cat\n\n{{"prompt": "{text}"}}\r\n{{"caption": "a dog", "image": "x"}}\n', encoding="utf-8"
    )
    code, out, _ = run("generate", "--prompts", file, "--output", tmp_path / "out", *PAINT, "--json")
    assert code == 0
    records = [json.loads(line) for line in out]
    assert [record["prompt"] for record in records] == ["a cat", text, "a dog"]
    assert [record["image"] for record in records] == [str(tmp_path / f"out/0000{i}.png") for i in range(3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "no prompt in it"),
        (b'a\n{"prompt": 3}', ":2: no 'prompt' or 'caption'"),
        (b"{oops", ":1: not JSON"),
        (b"caf\xe9", r"not UTF-8 \(byte 3\)"),
        (b'{"prompt": " "}', ":1: no 'prompt' or 'caption'"),
        (b'["a circle"] is a plain prompt\n[{"prompt": "a circle"}]', ":2: a JSON list, wanted a line for each"),
        (b'a\n{"prompt": "half of a character: \\ud83d"}', r":2: text is not UTF-8 \(character 21\)"),
        (None, "No such file"),
    ],
)
def test_a_bad_prompt_file_is_told_in_one_line(no_model, tmp_path, capsys, content, message):
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["generate", "--prompts", str(file), "--output", str(tmp_path / "o"), "--model", "m"]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert str(file) in error


# -- reconstruct


def test_reconstruction_writes_paintings_and_json_lines(run, photos, tmp_path):
    (photos / "c.png").rename(photos / "a.gif.png")
    (photos / "b.jpg").rename(photos / "a.jpg")  # the same stem as a.png
    (photos / "bad.png").write_bytes(b"")
    code, out, err = run("reconstruct", photos, "--output", tmp_path / "out", *CAPTION, *PAINT)
    records = [json.loads(line) for line in out]
    assert code == 1
    assert [list(record) for record in records] == [["image", "caption", "painting", "scores"]] * 3
    assert [record["image"] for record in records] == [str(photos / n) for n in ("a.gif.png", "a.jpg", "a.png")]
    names = [os.path.basename(record["painting"]) for record in records]
    assert names == ["a.gif.png", "a.png", "a-2.png"]
    assert all(Image.open(record["painting"]).size == (64, 64) for record in records)
    assert last(err) == "uae: 3 reconstructed, 1 skipped"


def test_file_names_never_meet(tmp_path):

    files = [Path(name) for name in ("x/a.png", "a.png", "a-2.png", "a.jpg")]
    assert [file.name for file in commands.painting_files(files, tmp_path)] == [
        "a.png",
        "a-2.png",
        "a-2-2.png",
        "a-3.png",
    ]


# -- nothing is lost


def test_nothing_is_overwritten_without_force(no_model, photos, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("00000.png", "a.png", "c.png"):
        (out / name).write_text("mine")
    common = ["--output", str(out), "--model", "m"]
    assert cli.main(["generate", "x", *common]) == 1
    assert "00000.png would be overwritten; choose another --output, or --force" in capsys.readouterr().err
    assert cli.main(["reconstruct", str(photos), *common]) == 1
    assert "a.png and 1 more would be overwritten" in capsys.readouterr().err
    # Not even forced over the images themselves.
    assert cli.main(["reconstruct", str(photos), "--output", str(photos), "--model", "m", "--force"]) == 1
    assert "is one of the images" in capsys.readouterr().err
    assert (out / "a.png").read_text() == "mine"


def test_force_overwrites(run, tmp_path):
    (tmp_path / "00000.png").write_text("old")
    code, _, _ = run("generate", "x", "--output", tmp_path, *PAINT, "--force")
    assert code == 0
    assert Image.open(tmp_path / "00000.png").size == (64, 64)


def interrupted(results, after, error):
    """Results that break off."""
    for number, result in enumerate(results):
        if number == after:
            raise error
        yield result


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    files = [str(tmp_path / name) for name in ("first.json", "second.json")]
    assert cli.main(["bench", "compare", *files]) == 1
    assert last(capsys.readouterr().err) == f"uae: error: {files[0]}: No such file or directory"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyboardInterrupt(), "uae: interrupted"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 1 GB"), "uae: error: out of memory; a lower"),
        (RuntimeError("INTERNAL: Out of memory allocating 9 bytes."), "uae: error: out of memory; a lower --memory-gb"),
        (MemoryError(), "uae: error: out of memory; a lower --memory-gb"),
    ],
    ids=["interrupt", "device memory", "memory of a CPU device", "host memory"],
)
def test_what_was_finished_stays_when_it_breaks_off(run, photos, tmp_path, small_uae, monkeypatch, error, message):
    usual = UAE.iter_reconstructions
    monkeypatch.setattr(
        small_uae,
        "iter_reconstructions",
        lambda *args, **kwargs: interrupted(usual(small_uae, *args, **kwargs), 2, error),
    )
    code, out, err = run("reconstruct", photos, "--output", tmp_path / "out", *CAPTION, *PAINT)
    assert code == 1
    assert last(err).startswith(message)
    paintings = [json.loads(line)["painting"] for line in out]
    assert len(paintings) == 2
    assert sorted(paintings) == sorted(str(path) for path in (tmp_path / "out").iterdir())
    assert all(Image.open(path).size == (64, 64) for path in paintings)


def test_out_of_memory_advises_flags_that_the_command_has(tmp_path, capsys, monkeypatch):
    def exhausted(args):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 GB")

    monkeypatch.setattr("uae_jax.training.command.train", exhausted)
    assert cli.main(["train", "--config", "configs/pretrain.py", "--workdir", str(tmp_path)]) == 1
    told = last(capsys.readouterr().err)
    assert told.startswith("uae: error: out of memory; a higher `accumulate`")
    assert "--memory-gb" not in told
    monkeypatch.setattr("uae_jax.training.command.encode", exhausted)
    args = ["data", "encode", "--config", "configs/pretrain.py", "--output", str(tmp_path / "o.array_record")]
    assert cli.main(args) == 1
    assert last(capsys.readouterr().err) == "uae: error: out of memory; a lower --batch-size makes smaller ones"


def test_importing_starts_no_device():
    """What needs none, as `uae data inspect`, runs beside a training that holds the TPU."""
    code = "import uae_jax.data_commands, jax; assert not jax._src.xla_bridge.backends_are_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_disk_is_told_with_the_file_and_the_remedy(tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("uae_jax.training.command.train", lambda args: commands.save(Image.new("RGB", (1, 1)), file))
    monkeypatch.setattr(Image.Image, "save", full)
    file = tmp_path / "a.png"
    train = ["train", "--config", "configs/pretrain.py", "--workdir", str(tmp_path)]
    assert cli.main(train) == 1
    assert last(capsys.readouterr().err) == f"uae: error: {file}: No space left on device; make room"
    monkeypatch.setattr("uae_jax.training.command.train", full)
    assert cli.main(train) == 1
    assert last(capsys.readouterr().err) == "uae: error: No space left on device; make room"


def test_a_bug_is_not_told_in_one_line(run, photos, small_uae, monkeypatch):
    monkeypatch.setattr(small_uae, "iter_captions", lambda *_, **__: interrupted([None], 0, RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        run("caption", photos)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    image = Image.new("RGB", (16, 16))
    (tmp_path / "a.png").write_text("old")

    def half(self, path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        commands.save(image, tmp_path / "a.png")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.png", "old")]


# -- errors and usage


@pytest.mark.parametrize(("place", "wanted"), [("device", (0, False)), ("split", (8, False)), ("host", (0, True))])
def test_where_weights_lie_is_an_option(photos, monkeypatch, place, wanted):
    def from_pretrained(*_, mesh, staged, **__):
        found.append((mesh.size if mesh is not None else 0, staged))
        raise ValueError("enough")

    found = []
    monkeypatch.setattr(UAE, "from_pretrained", classmethod(from_pretrained))
    assert cli.main(["caption", str(photos), "--place", place]) == 1
    assert found == [wanted]  # of 8 devices


def test_a_missing_model_is_told_in_one_line(photos, capsys):
    assert cli.main(["caption", str(photos), "--model", "/no/such/model"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert last(err).startswith("uae: error: /no/such/model: no such folder")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "x", "--size", "big"], "--size is 'big'"),
        (["generate", "x", "--steps", "0"], "steps is 0"),
        (["reconstruct", "{photos}", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["reconstruct", "{photos}", "--top-p", "2"], "top_p is 2.0"),
        (["reconstruct", "{photos}/*.gif"], "no image there"),
        (["reconstruct", "none.png", "x.png"], "none.png: no such file, nor any of the others; wanted images"),
        (["generate", "x", "--size", "64x"], "--size is '64x'"),
        (["generate", "x", "--guidance", "nan"], "guidance is nan"),
        (["generate", "x", " "], "prompt 2 is empty, wanted what to paint"),
        (["reconstruct", "{photos}", "--temperature", "nan"], "temperature is nan, wanted 0 (greedy) or more"),
        (["reconstruct", "{photos}", "--temperature", "1e-40"], "temperature is 1e-40, wanted 0 (greedy) or more"),
        (["reconstruct", "{photos}", "--repetition-penalty", "inf"], "repetition_penalty is inf"),
        (["reconstruct", "{photos}", "--question", "\udcff"], "--question: text is not UTF-8 (character 0)"),
        (["generate", "x", "--negative", "\0"], "--negative: text holds NUL"),
        (["generate", "\udcff"], "prompt 1: text is not UTF-8 (character 0)"),
        (["generate", "--prompts", ""], "Is a directory"),
        (["generate", "x", "--guidance", "1e39"], "guidance is 1e+39"),
        (["generate", "x", "--steps", "1000000000000000000"], "steps is 1000000000000000000, wanted 1 to 1000"),
        (["reconstruct", "{photos}", "--max-new-tokens", "3000000000"], "max_new_tokens is 3000000000, wanted 1 to"),
    ],
)
def test_bad_settings_are_refused_before_the_model_is_loaded(no_model, photos, tmp_path, capsys, args, message):
    args = [arg.format(photos=photos) for arg in args]
    assert cli.main([*args, "--output", str(tmp_path / "out"), "--model", "m"]) == 1
    [error] = capsys.readouterr().err.splitlines()
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "x", "--output", "{tmp}/o", "--size", "62"], "size is 62x62, wanted sides in multiples of 8"),
        (["reconstruct", "{photos}", "--output", "{tmp}/o", "--size", "62x64"], "size is 62x64, wanted sides in"),
        (["generate", "x", "--output", "{photos}/a.png/o"], "a.png/o: cannot be made (Not a directory)"),
        (["caption", "none.png"], "none.png: no such file; wanted images"),
        # The tiny encoder has 2048 positions; each of these words is a token at least.
        (["generate", "x", " box" * 2100, "--output", "{tmp}/o"], "tokens, wanted at most the encoder's 2048"),
    ],
)
def test_what_the_model_or_the_disk_refuses_is_told_before_loading(no_model, photos, tmp_path, capsys, args, message):
    assert cli.main([arg.format(photos=photos, tmp=tmp_path) for arg in args]) == 1
    assert message in last(capsys.readouterr().err)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("size", ["nan", "inf", "0"])
def test_a_size_of_shards_that_is_none_is_told_with_its_option(capsys, size):
    assert cli.main(["export", "a", "b", "--max-shard-gb", size]) == 1
    assert f"--max-shard-gb is {float(size)}, wanted a number above 0" in capsys.readouterr().err


def test_a_part_that_was_cut_off_is_told_before_weights_are_read(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("weights were read"))
    shutil.copytree(EMBEDDED / "tiny", tmp_path / "m")
    last_read = tmp_path / "m/SD3/text_encoder_2/model.safetensors"
    last_read.write_bytes(last_read.read_bytes()[:-1])
    assert cli.main(["caption", str(photos), "--model", str(tmp_path / "m")]) == 1
    told = last(capsys.readouterr().err)
    assert f"{last_read}: " in told and "truncated" in told


def test_scorers_and_tokenizer_are_looked_for_before_weights_are_read(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(np, "fromfile", lambda *_, **__: pytest.fail("weights were read"))
    bare = tmp_path / "bare"
    shutil.copytree(EMBEDDED / "tiny", bare, ignore=shutil.ignore_patterns("tokenizer*"))

    def told(*args):
        assert cli.main(["reconstruct", str(photos), "--output", str(tmp_path / "o"), *map(str, args)]) == 1
        return last(capsys.readouterr().err)

    assert "/no/scorer: no such folder" in told("--scorer", "clip=/no/scorer")
    assert f"{photos}/config.json: missing" in told("--scorer", f"clip={photos}")
    assert f"{bare}/llm_model: no tokenizer.json in it" in told("--model", bare)
    assert "give the base model as processor (--processor)" in told("--model", bare)
    assert f"{photos}: no tokenizer.json in it" in told("--processor", photos)


def test_a_size_that_the_model_cannot_paint_is_told_in_one_line(run, tmp_path):
    code, out, err = run("generate", "x", "--output", tmp_path / "o", "--size", "40x64")
    assert (code, out) == (1, [])
    assert last(err) == "uae: error: size is 40x64, wanted sides in multiples of 16 up to 384"


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "--output", "o", "--model", "m"],
        ["generate", "x", "--prompts", "f", "--output", "o", "--model", "m"],
        ["generate", "x", "--model", "m"],
        ["caption", "--model", "m"],
        ["caption", "a.png", "--model", "m", "--max-new-tokens", "many"],
        ["caption", "a.png", "--model", "m", "--no-such-option"],
        ["caption", "a.png", "--memory-gb", "-1"],
        ["caption", "a.png", "--memory-gb", "nan"],
        ["caption", "a.png", "--memory-gb", "x"],
        ["caption", "a.png", "--seed", "4294967296"],
        ["generate", "--prompt", "f", "--output", "o", "--model", "m"],
        ["train", "--config", "f.py", "--workdir", "w", "--quite"],
        ["reconstruct", "a.png", "--output", "o", "--model", "m", "--scorer", "clip"],
        ["reconstruct", "a.png", "--output", "o", "--model", "m", "--interface", "hidden"],
        ["paint"],
    ],
)
def test_bad_usage_exits_with_2(args, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(args)
    assert exit_.value.code == 2
    assert "usage: uae" in capsys.readouterr().err


def test_options_may_stand_before_prompts_and_images(run, photos, tmp_path):
    code, out, _ = run("generate", "--output", tmp_path / "o", *PAINT, "--seed", "1", "a cup")
    assert (code, len(out)) == (0, 1)
    code, out, _ = run("caption", *CAPTION, photos / "a.png")
    assert (code, len(out)) == (0, 1)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: uae {command}" in text
    assert "example: uae" in text


def test_help_needs_no_jax():
    code = (
        "import sys; from uae_jax import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'jax', 'numpy', 'PIL', 'transformers', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert command in done.stdout
