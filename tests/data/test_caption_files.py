"""Captions on disk: nothing lost, nothing twice, nothing half, whenever the writer is killed."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.data.sources.checks import png, shown
from uae_jax.data.caption_files import JsonLines, TextFiles
from uae_jax.data.config import SourceConfig
from uae_jax.data.sources import open_source

SETTINGS = {"model": "m", "temperature": 0.7}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    return sorted(folder.iterdir())


def test_the_result_is_a_table_source(images):
    path = images[0].parent / "captions.jsonl"
    with JsonLines(path, SETTINGS) as writer:
        for number in (2, 0):
            writer.write(images[number], f"picture {number}\u2028\né")
        assert [writer.has(image) for image in images] == [True, False, True, False]
    source = open_source(SourceConfig(path=str(path)))
    assert [shown(source[n]) for n in range(2)] == [2, 0]
    assert source[0].captions["caption"] == "picture 2\u2028\né"


def test_images_elsewhere_go_by_their_absolute_paths(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out" / "captions.jsonl"
    with JsonLines(path, SETTINGS) as writer:
        writer.write(images[3], "x")
    assert shown(open_source(SourceConfig(path=str(path)))[0]) == 3
    relative = images[3].relative_to(tmp_path)
    with JsonLines(path.relative_to(tmp_path), SETTINGS) as writer:  # named in another way
        assert writer.has(relative) and writer.has(images[3])


def test_a_line_that_was_cut_off_is_written_again(images):
    path = images[0].parent / "c.jsonl"
    with JsonLines(path, SETTINGS) as writer:
        writer.write(images[0], "zero")
        writer.write(images[1], "one")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):  # killed after any byte of the second line
        path.write_bytes(whole[:end])
        with JsonLines(path, SETTINGS) as writer:
            assert writer.has(images[0]) and not writer.has(images[1])
            writer.write(images[1], "one")
        assert path.read_bytes() == whole


def test_files_of_others_are_left_alone(images, tmp_path):
    path = tmp_path / "notes.jsonl"
    for content in (b"my notes\nare these", b'{"prompt": "x"}\n', b"[1]\n", b'"text"\n', b'[{"image": "0.png"}]'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"notes\.jsonl:1: not a line of images and captions; choose another"):
            JsonLines(path, SETTINGS).__enter__()
        assert path.read_bytes() == content


def test_other_settings_are_refused(images, tmp_path):
    path = tmp_path / "c.jsonl"
    with JsonLines(path, SETTINGS):
        pass
    with JsonLines(path, SETTINGS | {"model": "n"}) as writer:  # nothing was written yet
        writer.write(images[0], "x")
    with pytest.raises(ValueError, match=r"has 1 captions written with other settings \(model 'n', now 'm'\)"):
        JsonLines(path, SETTINGS).__enter__()
    with JsonLines(path, SETTINGS | {"model": "n"}) as writer:
        assert writer.has(images[0])


def test_two_writers_at_once_are_refused(tmp_path):
    path = tmp_path / "c.jsonl"
    with (
        JsonLines(path, SETTINGS),
        pytest.raises(ValueError, match="another process is writing it"),
        JsonLines(path, SETTINGS),
    ):
        pass
    with JsonLines(path, SETTINGS):
        pass


def test_texts_beside_images_make_a_folder_source(images):
    with TextFiles() as writer:
        writer.write(images[1], "one é")
        assert [writer.has(image) for image in images] == [False, True, False, False]
    source = open_source(SourceConfig(path=str(images[0].parent)))
    assert source[1].captions["caption"] == "one é\n".encode()
    assert len(list(images[0].parent.iterdir())) == 5  # and nothing unfinished


WRITER = """
import pathlib, sys
from uae_jax.data.caption_files import JsonLines
folder = pathlib.Path(sys.argv[1])
with JsonLines(folder / "c.jsonl", {}) as writer:
    print("begun", flush=True)
    for number in range(400):
        image = folder / f"{number}.png"
        if not writer.has(image):
            writer.write(image, f"caption {number} " * 50)
"""


def test_killed_at_random_moments_the_file_is_whole_in_the_end(tmp_path):
    rng = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    records = [json.loads(line) for line in (tmp_path / "c.jsonl").read_bytes().splitlines()]
    assert records == [{"image": f"{n}.png", "caption": f"caption {n} " * 50} for n in range(400)]
