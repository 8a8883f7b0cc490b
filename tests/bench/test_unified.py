"""Unified-Bench from the command line: others' paintings and our own, the published structure, comparisons."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.stages import judges
from uae_jax import cli
from uae_jax.bench import commands, unified
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


def copied(references):
    return shutil.copytree(references, references.with_name("copies"))


def bench(references, output, scorers, *more):
    return cli.main(["bench", "unified", "--reference", str(references), "--output", str(output), *scorers, *more])


def test_an_image_is_like_itself(references, tmp_path, scorers):
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(copied(references))) == 0
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


@pytest.mark.slow
def test_of_other_references_nothing_is_kept(references, tmp_path, scorers, model, capsys):
    # Captions and noise are drawn by number, which a reference that is added or mended gives to others.
    more = ["--model", str(model), "--max-new-tokens", "4", "--steps", "1", "--force"]
    whole = (references / "1.png").read_bytes()
    (references / "1.png").write_bytes(b"no image")
    assert bench(references, tmp_path / "out.json", scorers, *more) == 1
    told = capsys.readouterr()
    assert f"skipped: {references / '1.png'}" in told.err and "1 without a painting: 1.png" in told.out
    for change in (whole, (references / "0.png").read_bytes()):  # mended, and another one in its place
        (references / "1.png").write_bytes(change)
        assert bench(references, tmp_path / "out.json", scorers, *more) == 1
        assert "2 captions written with other settings (references '" in capsys.readouterr().err
    (references / "1.png").write_bytes(b"no image")
    assert bench(references, tmp_path / "out.json", scorers, *more) == 1
    assert "without a painting" in capsys.readouterr().out


@pytest.mark.parametrize("place", [".", "below"])
def test_references_do_not_become_their_own_paintings(references, tmp_path, scorers, capsys, place):
    generated = references if place == "." else references.parent
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(generated)) == 1
    assert "references would be taken for paintings of themselves" in capsys.readouterr().err


def test_what_macos_keeps_beside_an_image_is_none(references, tmp_path, scorers):
    generated = blurred(references, tmp_path / "generated")
    for folder in (references, generated):
        (folder / "._0.png").write_bytes(b"Mac OS X")
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(generated)) == 0


def test_two_references_of_one_stem_cannot_both_be_painted(references, tmp_path, scorers, capsys):
    Image.open(references / "0.png").save(references / "0.jpg")
    assert bench(references, tmp_path / "out.json", scorers, "--model", "tiny") == 1
    assert "rename one of them" in capsys.readouterr().err


def test_the_record_is_json(references, tmp_path, scorers, capsys):
    assert bench(references, tmp_path / "out", scorers, "--generated", str(copied(references))) == 1
    assert "wanted FILE.json" in capsys.readouterr().err


def written(folder, *records):
    files = [folder / f"{name}.json" for name in ("first", "second")]
    for file, record in zip(files, records, strict=True):
        file.write_text(json.dumps(record))
    return list(map(str, files))


def published(similarities):
    """The whole of what Unified-Bench's code writes, by its keys; a port of it writes NaN where it failed."""
    valid = {name: [x for x in row.values() if x is not None and x == x] for name, row in similarities.items()}
    averages = {name: sum(values) / len(values) for name, values in valid.items()}
    statistics = {
        name: {
            "total_images": len(similarities[name]),
            "valid_pairs": len(values),
            "average_similarity": averages[name],
            "min_similarity": min(values),
            "max_similarity": max(values),
        }
        for name, values in valid.items()
    }
    ranked = sorted(averages.items(), key=lambda item: item[1])
    summary = {
        "models_used": list(averages),
        "average_scores_by_model": averages,
        "overall_average": sum(averages.values()) / len(averages),
        "best_model": ranked[-1],
        "worst_model": ranked[0],
    }
    return {
        "model_types": list(averages),
        "similarities_by_model": similarities,
        "statistics_by_model": statistics,
        "summary": summary,
    }


def test_a_whole_published_record_is_read_and_what_failed_in_it_is_told(tmp_path, capsys):
    nan = float("nan")
    ours = {name: {f"{i}.jpg": 0.5 for i in range(4)} for name in unified.UNIFIED}
    theirs = {
        "clip": {"0.jpg": 0.7, "1.jpg": nan, "2.jpg": 0.9, "4.jpg": 0.5},
        "longclip": {"0.jpg": 0.7, "1.jpg": None, "2.jpg": None, "4.jpg": 0.5},
    }
    files = written(tmp_path, published(ours), published(theirs))
    assert "NaN" in (tmp_path / "second.json").read_text()
    assert cli.main(["bench", "compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["overall"]["pairs"] == 1  # 0.jpg alone has a score of both scorers in both
    assert found["overall"]["difference"] == pytest.approx(0.2)
    assert found[unified.OWN] == {
        "all_scorers": False,
        "overall_of": ["clip", "longclip"],
        "left_out": {
            "first": {"4.jpg": ["clip", "longclip"]},
            "second": {"1.jpg": ["clip", "longclip"], "2.jpg": ["longclip"], "3.jpg": ["clip", "longclip"]},
        },
        "not_shared": {"first": ["dinov2", "dinov3"], "second": []},
        "scene_scorers": {"first": [], "second": []},
    }
    assert cli.main(["bench", "compare", *files]) == 0
    out = capsys.readouterr().out
    assert "overall is NOT the unified score: dinov2, dinov3 did not judge" in out
    assert f"only {files[0]} has dinov2, dinov3" in out
    assert f"1 left out, without a score in {files[0]}: 4.jpg" in out
    assert f"3 left out, without a score in {files[1]}: 1.jpg, 2.jpg (longclip), 3.jpg" in out


def test_a_comparison_that_leaves_nothing_out_says_nothing_of_it(tmp_path, capsys):
    whole = published({name: {"0.jpg": 0.5, "1.jpg": 0.7} for name in unified.UNIFIED})
    assert cli.main(["bench", "compare", *written(tmp_path, whole, whole)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4 + 1  # heading, scorers, overall


@pytest.mark.parametrize("value", ['"0.5"', "true", "Infinity", "[0.5]"])
def test_scores_that_are_no_numbers_are_refused(tmp_path, capsys, value):
    (tmp_path / "a.json").write_text(f'{{"similarities_by_model": {{"clip": {{"0.jpg": {value}}}}}}}')
    assert cli.main(["bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")]) == 1
    assert "a.json: clip of 0.jpg is" in capsys.readouterr().err


def test_the_overall_score_is_of_the_four_whoever_else_judges(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    found = pair(tmp_path, tmp_path)
    scores = {name: {"a.png": 0.7, "b.png": 0.9} for name in unified.UNIFIED} | {"mine": {"a.png": 0.0, "b.png": 0.0}}
    record = unified.result(scores, found, {}, {})
    assert record["summary"]["overall_average"] == pytest.approx(0.8)  # 0.64 with the fifth
    assert record["summary"]["average_scores_by_model"]["mine"] == 0
    own = record[unified.OWN]
    assert own["all_scorers"] and own["overall_of"] == list(unified.UNIFIED)
    assert own["overall_interval"][0] == pytest.approx(0.7)  # of two pairs the bootstrap reaches both
    assert "overall leaves mine out" in commands.table(record)
    again = unified.compare(scores, scores | {"mine": {"a.png": 1.0, "b.png": 1.0}})
    assert again.rows["mine"]["difference"] == 1 and again.rows["overall"]["difference"] == 0


def test_scorers_of_the_package_are_told_apart(references, tmp_path, capsys):
    one = ["--scorer", "clip=tiny/scorers/clip"]
    assert bench(references, tmp_path / "out.json", one, "--generated", str(copied(references))) == 0
    told = capsys.readouterr()
    assert "know the scene world alone" in told.out and "know the scene world alone" in told.err
    assert json.loads((tmp_path / "out.json").read_text())[unified.OWN]["scene_scorers"] == ["clip"]
    assert "know the scene world alone" in (tmp_path / "out.html").read_text()
    other = published({"clip": {f"{i}.png": 0.5 for i in range(3)}})
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert cli.main(["bench", "compare", str(tmp_path / "out.json"), str(tmp_path / "other.json")]) == 0
    assert "out.json: scorers of the package" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        (["clip=CLIP", "dinov2=DINO", "clip=CLIP"], "--scorer names clip more than once"),
        (["clip=DINO"], "holds a Dinov2Model, wanted a CLIP for clip"),
        (["dinov3=DINO"], "holds a Dinov2Model, wanted a DINOv3 for dinov3"),
        (["longclip=CLIP"], "reads texts of 77 tokens, wanted more than 77 for longclip"),
        (["clip=tiny/scorers/longclip"], "reads texts of 248 tokens, wanted at most 77 for clip"),
        (["clip=CLIP", "dinov2=BROKEN"], "missing: "),
    ],
)
def test_scorers_are_looked_at_before_anything_is_painted(references, tmp_path, scorers, capsys, named, wanted):
    places = dict(argument.split("=") for argument in scorers[1::2])
    places = {"CLIP": places["clip"], "DINO": places["dinov2"], "BROKEN": str(tmp_path / "broken")}
    shutil.copytree(places["DINO"], tmp_path / "broken")
    config = tmp_path / "broken/config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 2'))
    arguments = [
        a
        for each in named
        for name, place in [each.split("=")]
        for a in ("--scorer", f"{name}={places.get(place, place)}")
    ]
    assert bench(references, tmp_path / "out.json", arguments) == 1
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("inside", ["--output", "--generated"])
def test_paintings_do_not_become_references(references, tmp_path, scorers, capsys, inside):
    within = references / "run"
    if inside == "--generated":
        blurred(references, within)
    where = {"--output": [within / "out.json"], "--generated": [tmp_path / "out.json", "--generated", str(within)]}
    output, *more = where[inside]
    assert bench(references, output, scorers, *more) == 1
    assert f"{inside} is {within}" in capsys.readouterr().err
    assert not output.exists()


def test_a_file_of_another_kind_beside_the_paintings_is_left_alone(references, tmp_path, scorers, capsys):
    generated = blurred(references, tmp_path / "generated")
    (tmp_path / "captions.jsonl").write_text('{"file_name": "0.png", "text": "a cup"}\n')
    assert bench(references, tmp_path / "out.json", scorers, "--generated", str(generated)) == 0
    assert "captions.jsonl holds no captions of images" in capsys.readouterr().err
    assert (tmp_path / "out.html").exists()


def test_nothing_is_written_that_cannot_be_shown(references, tmp_path, scorers, monkeypatch):
    monkeypatch.setattr(commands.gallery, "to_html", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench(references, tmp_path / "out.json", scorers, "--generated", str(copied(references)))
    assert not list(tmp_path.glob("out*"))  # so that the same command can be given again


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("compare", "their 95% intervals"),  # `argparse` leaves percent signs of a description as they are
        ("scenes", "(default: those of the package, which know scenes)"),
        ("unified", "(default: those that come with the model)"),
    ],
)
def test_help_says(capsys, command, told):
    with pytest.raises(SystemExit):
        cli.main(["bench", command, "--help"])
    assert told in " ".join(capsys.readouterr().out.split())


def test_comparison_is_paired(tmp_path, capsys):
    rng = np.random.default_rng(0)
    hard = rng.random(50)
    names = [f"{i}.jpg" for i in range(50)]

    def record(gain, drop=()):
        scores = {name: None if name in drop else float(x + gain) for name, x in zip(names, hard, strict=True)}
        return {"similarities_by_model": {"clip": scores, "dinov2": scores}}

    # As the published code writes it: no key of ours.
    files = written(tmp_path, record(0.0), record(0.05, drop=("7.jpg",)))
    assert cli.main(["bench", "compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["clip", "dinov2", "overall", unified.OWN]
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
