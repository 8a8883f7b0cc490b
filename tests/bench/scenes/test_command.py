"""`uae bench scenes` from end to end: a painter that sees the scene is all right, one that errs where it errs."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from tests.bench.scenes.test_prompts import drawn  # noqa: F401
from tests.stages import judges
from tests.tiny.models import random_uae
from uae_jax import cli
from uae_jax.bench import commands
from uae_jax.bench.scenes import command, dpg, prompts
from uae_jax.data.scenes import render
from uae_jax.pipeline import Reconstruction
from uae_jax.weights import uae


class Painter:
    """Stands for `UAE`: paints the scene that a prompt was made from, changed as `spoil` says."""

    loaded = 0

    def __init__(self, known, spoil=lambda scene: scene):
        self.known, self.spoil = known, spoil

    def iter_paintings(self, texts, settings, *, seed, first):
        for place, text in reversed(list(enumerate(texts))):
            yield place, Image.fromarray(render(self.spoil(self.known[text])))

    def iter_answers(self, images, texts, settings, *, seed, first):
        assert settings.temperature == 0
        yield from ((i, "A" if "A. " in text else "red") for i, text in enumerate(texts))

    def iter_reconstructions(self, images, writing, painting, *, interface, seed, first):
        yield from ((i, Reconstruction("a scene", image, {})) for i, image in enumerate(images))


@pytest.fixture
def known(drawn):  # noqa: F811
    """Prompt -> scene, of all prompts of one scene of each kind."""
    found = {}
    for benchmark in prompts.TAGS:
        drawn.clear()
        lines = prompts.metadata(benchmark, 1)
        found |= {line["prompt"]: scene for line, scene in zip(lines, drawn, strict=True)}
    drawn.clear()
    captions = dpg.prompts(1)
    return found | dict(zip(captions.values(), drawn, strict=True))


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Arguments that name two small random scorers."""
    return [f"--scorer={part.name}={part.model}" for part in judges.write(tmp_path_factory.mktemp("scorers"))]


@pytest.fixture
def bench(known, monkeypatch, tmp_path, capsys, scorers):
    """Runs the command with a painter: (exit code, what it found)."""

    def bench(spoil, *more, scenes=1):
        def load(args, **_):
            Painter.loaded += 1
            return Painter(known, spoil)

        monkeypatch.setattr(commands, "load", load)
        arguments = ["bench", "scenes", "--output", str(tmp_path / "out"), "--scenes", str(scenes), "--json"]
        code = cli.main([*arguments, *scorers, *more])
        out = capsys.readouterr()
        return code, json.loads(out.out) if code == 0 else out.err

    Painter.loaded = 0
    return bench


def right(scene):
    return scene


def recoloured(scene):
    """Everything turns to another colour."""
    turn = {"red": "blue"}
    items = [dataclasses.replace(item, colour=turn.get(item.colour, "red")) for item in scene.objects]
    return dataclasses.replace(scene, objects=tuple(items))


def test_all_of_it(bench, tmp_path):
    code, found = bench(right)
    assert code == 0 and tuple(found) == tuple(command.TWINS)
    assert all(found[name]["score"] == 1 for name in ("geneval", "genevalpp")) and found["dpg"]["score"] == 100
    assert found["geneval"]["pictures"] == 4 * len(prompts.TAGS["geneval"])
    assert found["unified"]["score"] == pytest.approx(1, abs=1e-5)  # to random scorers too, a picture is like itself
    lines = [json.loads(line) for line in (tmp_path / "out/vqa/questions.jsonl").read_text().splitlines()]
    said = [line["answer"] in (line["choices"][0] if "choices" in line else "", ["red"]) for line in lines]
    assert found["vqa"]["score"] == pytest.approx(np.mean(said))
    assert (tmp_path / "out/unified/result.html").read_text().count("<img") == 12
    assert (tmp_path / "out/genevalpp/paintings/image/1.jpg").exists()
    assert Painter.loaded == 1  # one model for all

    assert bench(right, "--only", "dpg") == (0, {"dpg": found["dpg"]}) and Painter.loaded == 1  # nothing is done again
    assert json.loads((tmp_path / "out/result.json").read_text()) == found
    code, told = bench(right, "--only", "dpg", "--seed", "1")  # of which one table would tell nothing
    assert code == 1 and "other settings (seed 0, now 1)" in told
    code, told = bench(right, scenes=2)
    assert code == 1 and "other settings (scenes 1, now 2)" in told


def test_what_is_wrong_counts_where_it_is_asked_for(bench):
    code, found = bench(recoloured, "--only", "geneval", "--only", "dpg")
    by = found["geneval"]["by"]
    assert code == 0 and (by["colors"], by["color_attr"]) == (0, 0)
    assert by["single_object"] == by["two_object"] == by["counting"] == by["position"] == 1
    assert found["dpg"]["by"]["entity"] == 100 and found["dpg"]["by"]["attribute"] == pytest.approx(100 * 2 / 3)


def test_pictures_are_square(bench):
    code, told = bench(right, "--size", "64x32")
    assert code == 1 and "wanted a square" in told


@pytest.mark.slow
def test_a_real_model_goes_the_whole_way(tmp_path, capsys, scorers):
    uae.save_published(random_uae(), tmp_path / "model")
    settings = ["--model", str(tmp_path / "model"), "--steps", "1", "--max-new-tokens", "4", "--json"]
    arguments = ["bench", "scenes", "--output", str(tmp_path / "out"), "--scenes", "1", *settings, *scorers]
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found) == tuple(command.TWINS)
    assert found["geneval"]["score"] == 0  # it paints noise
    assert found["vqa"]["questions"] == 8 and found["vqa"]["unanswered"] == 0
