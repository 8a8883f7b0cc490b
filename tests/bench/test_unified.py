"""Unified-Bench from the command line: others' paintings and our own, the published structure, comparisons."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.stages import judges
from uae_jax import cli
from uae_jax.bench import unified
from uae_jax.bench.intervals import mean_interval
from uae_jax.bench.pairing import pair
from uae_jax.tiny.figures import Scenes
from uae_jax.weights import new, uae


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    """Arguments that name two small random scorers."""
    parts = judges.write(tmp_path_factory.mktemp("scorers"))
    return [argument for part in parts for argument in ("--scorer", f"{part.name}={part.model}")]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "uae"
    uae.save_published(new.new_uae("tiny", 0), folder)
    return folder


@pytest.fixture
def references(tmp_path):
    folder = tmp_path / "references"
    folder.mkdir()
    for number, image in enumerate(Scenes.sample(3).images):
        image.save(folder / f"{number}.png")
    return folder


def blurred(references, folder, *, radius=2, leave_out=()):
    folder.mkdir()
    for file in references.glob("*.png"):
        if file.name not in leave_out:
            Image.open(file).filter(ImageFilter.GaussianBlur(radius)).save(folder / f"recon_{file.name}")
    return folder


def bench(references, output, scorers, *more):
    return cli.main(["bench", "unified", "--reference", str(references), "--output", str(output), *scorers, *more])


def test_an_image_is_like_itself(references, tmp_path, scorers):
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(references)) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["summary"]["overall_average"] == pytest.approx(1, abs=1e-5)


def test_the_record_has_the_published_structure(references, tmp_path, scorers, capsys):
    generated = blurred(references, tmp_path / "generated")
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(generated)) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    # The keys that the published code writes; ours are under one of our own.
    published = ("model_types", "similarities_by_model", "statistics_by_model", "summary")
    assert set(record) == {*published, unified.OWN}
    assert record["model_types"] == ["clip", "dinov2"]
    values = record["similarities_by_model"]
    assert all(list(scores) == ["0.png", "1.png", "2.png"] for scores in values.values())
    assert record["statistics_by_model"]["clip"] == {
        "total_images": 3,
        "valid_pairs": 3,
        "average_similarity": pytest.approx(np.mean(list(values["clip"].values()))),
        "min_similarity": min(values["clip"].values()),
        "max_similarity": max(values["clip"].values()),
    }
    averages = {name: row["average_similarity"] for name, row in record["statistics_by_model"].items()}
    best, worst = (max(averages, key=averages.get), min(averages, key=averages.get))
    assert record["summary"] == {
        "models_used": ["clip", "dinov2"],
        "average_scores_by_model": averages,
        "overall_average": pytest.approx(np.mean(list(averages.values()))),
        "best_model": [best, averages[best]],
        "worst_model": [worst, averages[worst]],
    }
    # An overall score of two scorers is not the unified score, and says so.
    assert not record[unified.OWN]["all_scorers"] and record[unified.OWN]["all_pairs"]
    assert "NOT the unified score: longclip, dinov3" in capsys.readouterr().out
    page = (tmp_path / "out.html").read_text()
    assert page.count("<img") == 6
    order = sorted(values["clip"], key=lambda name: values["clip"][name] + values["dinov2"][name])
    places = [page.index(f'class="id">{name}') for name in order]
    assert places == sorted(places)  # the worst first


def test_missing_and_unreadable_paintings_are_counted(references, tmp_path, scorers, capsys):
    generated = blurred(references, tmp_path / "generated", leave_out=("0.png",))
    (generated / "recon_1.png").write_bytes(b"no image")
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(generated)) == 1
    record = json.loads((tmp_path / "out.json").read_text())
    own, scores = record[unified.OWN], record["similarities_by_model"]["clip"]
    assert own["missing"] == ["0.png"] and list(own["unreadable"]) == ["1.png"] and not own["all_pairs"]
    assert scores["0.png"] is scores["1.png"] is None and scores["2.png"] > 0
    assert record["statistics_by_model"]["clip"]["total_images"] == 3
    assert record["statistics_by_model"]["clip"]["valid_pairs"] == 1
    out = capsys.readouterr().out
    assert "1 without a painting: 0.png" in out and "1 unreadable" in out


@pytest.mark.slow
def test_our_own_paintings_go_on_where_they_stopped(references, tmp_path, scorers, model):
    more = ["--model", str(model), "--max-new-tokens", "4", "--steps", "2"]
    output = tmp_path / "out.json"
    assert bench(references, output, scorers, *more) == 0
    record, paintings = json.loads(output.read_text()), sorted((tmp_path / "out/paintings").glob("*.png"))
    assert [file.name for file in paintings] == ["0.png", "1.png", "2.png"]
    assert len((tmp_path / "out/captions.jsonl").read_text().splitlines()) == 3
    assert record[unified.OWN]["painting"]["steps"] == 2

    assert bench(references, output, scorers, *more) == 1  # refuses to overwrite
    before = paintings[1].read_bytes()
    paintings[1].unlink()  # stopped in between
    assert bench(references, output, scorers, *more, "--force") == 0
    assert paintings[1].read_bytes() == before
    assert json.loads(output.read_text())["similarities_by_model"] == record["similarities_by_model"]
    # Paintings of two minds are not mixed.
    assert bench(references, output, scorers, *more[:-1], "3", "--force") == 1


def test_two_references_of_one_stem_cannot_both_be_painted(references, tmp_path, scorers, capsys):
    Image.open(references / "0.png").save(references / "0.jpg")
    assert bench(references, tmp_path / "out.json", scorers, "--model", "tiny") == 1
    assert "rename one of them" in capsys.readouterr().err


def test_the_record_is_json(references, tmp_path, scorers, capsys):
    assert bench(references, tmp_path / "out", scorers, "--generated", str(references)) == 1
    assert "wanted FILE.json" in capsys.readouterr().err


def test_comparison_is_paired(tmp_path, capsys):
    rng = np.random.default_rng(0)
    hard = rng.random(50)
    names = [f"{i}.jpg" for i in range(50)]

    def record(gain, drop=()):
        scores = {name: None if name in drop else float(x + gain) for name, x in zip(names, hard, strict=True)}
        return {"similarities_by_model": {"clip": scores, "dinov2": scores}}

    # As the published code writes it: no key of ours.
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    files[0].write_text(json.dumps(record(0.0)))
    files[1].write_text(json.dumps(record(0.05, drop=("7.jpg",))))
    assert cli.main(["bench", "compare", *map(str, files), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["clip", "dinov2", "overall"]
    # The same gain of every pair leaves nothing to chance, however different the pairs are.
    assert found["overall"]["pairs"] == 49
    assert found["overall"]["difference"] == pytest.approx(0.05)
    assert found["overall"]["interval"] == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("content", ["{}", "[]", "not json", '{"similarities_by_model": {}}'])
def test_what_is_no_record_is_refused(tmp_path, capsys, content):
    (tmp_path / "a.json").write_text(content)
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 1
    assert "a.json" in capsys.readouterr().err


def test_the_interval_of_a_mean_is_the_textbook_one():
    values = np.random.default_rng(1).standard_normal(400)
    low, high = mean_interval(values, draws=4000)
    half = 1.96 * values.std() / 20
    assert (low, high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )


def test_no_pair_at_all_is_an_error(references, tmp_path):
    found = pair(references, blurred(references, tmp_path / "generated"))
    with pytest.raises(ValueError, match="none of 3 references"):
        unified.result({"clip": dict.fromkeys(found.pairs)}, found, dict.fromkeys(found.pairs, "bad"), {})
