"""`uae bench ablate` trains and measures what is missing, and its table says what was recorded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.tiny.models import random_uae
from uae_jax import cli
from uae_jax.bench.ablations import command, table
from uae_jax.stages.scene_scores import of_each
from uae_jax.tiny.figures import Look
from uae_jax.weights import uae

FOLDER = Path(__file__).parents[3] / "configs/ablations"
SCENES = 6


def recorded(**means):
    """Figures of scenes as `compare.measure` gives them."""
    spread = np.linspace(-0.01, 0.01, SCENES)
    return {name: of_each(mean + spread) for name, mean in means.items()}


@pytest.fixture
def bench(monkeypatch, tmp_path, capsys):
    """Runs the command; training leaves an empty model, and measuring gives what is recorded for it."""
    done = {"trained": [], "measured": [], "stages": 0}

    def train(stages, folder, quiet):
        done["trained"].append((folder.name, [getattr(e.settings, "reward", ()) for _, e in stages]))
        for number, (name, _) in enumerate(stages, start=1):
            model = folder / f"{number}_{name}" / "model"
            done["stages"] += not model.exists()
            model.mkdir(parents=True, exist_ok=True)

    def measure(model, scenes, look):
        done["measured"].append((model, look))
        gain = 0.1 * (model != "tiny") - 0.02 * (look.max_new_tokens is not None)
        name = Path(model).parents[1].name if model != "tiny" else model
        weights = next((reward[-1] for folder, reward in done["trained"] if folder == name), ())
        judges = {part.name: 0.5 + gain + 0.2 * part.weight for part in weights}
        judges = judges or dict.fromkeys(("clip", "longclip", "dinov2", "dinov3"), 0.5 + gain)
        return recorded(unified=float(np.mean(list(judges.values()))), words=20.0 + 100 * gain, **judges)

    monkeypatch.setattr(command.chain, "train_stages", train)
    monkeypatch.setattr(command.compare, "measure", measure)

    def bench(*more, code=0):
        arguments = ["--workdir", str(tmp_path), "--configs", str(FOLDER), "--scenes", str(SCENES), "--steps", "3"]
        assert cli.main(["bench", "ablate", *arguments, *more]) == code
        return capsys.readouterr()

    return bench, done


@pytest.mark.slow
def test_everything_is_done_once(bench, tmp_path):
    run, done = bench
    found = json.loads(run("--only", "reward", "--seeds", "0", "1", "--json").out)
    assert len(done["trained"]) == len(done["measured"]) == 5 * 2
    assert list(found) == ["reward"] and found["reward"]["seeds"] == [0, 1]
    rows = found["reward"]["arms"]
    # CLIP was rewarded in the first arm, DINOv2 in the third: neither lets it say that it is no gain for others.
    assert rows["dinov2"]["rewarded"] == ["dinov2"]
    assert rows["dinov2"]["figures"]["dinov2"]["difference"] == pytest.approx(0.2)
    assert rows["dinov2"]["figures"]["clip"]["difference"] == pytest.approx(-0.2)
    assert rows["dinov2"]["figures"]["held_out"] == {
        "treated": pytest.approx(0.6),
        "control": pytest.approx(0.6),
        "difference": pytest.approx(0),
        "low": pytest.approx(0),
        "high": pytest.approx(0),
        "by_seed": pytest.approx([0, 0]),
    }
    page = (tmp_path / "ablations.md").read_text()
    assert json.loads((tmp_path / "ablations.json").read_text()) == found

    assert run("--only", "reward", "--seeds", "0", "1").out == page + "\n"
    assert len(done["trained"]) == len(done["measured"]) == 10  # nothing again
    run("--only", "length", "--only", "reward", "--seeds", "0", "1", "2")
    assert len(done["trained"]) == 15  # the third seed; captions cut to a budget are no new runs


def test_what_is_measured_is_not_trained_again(bench, tmp_path):
    """Models may be deleted, or the figures alone be what somebody has of them."""
    run, done = bench
    page = run("--only", "group", "--seeds", "0").out
    shutil.rmtree(tmp_path / "runs")
    assert run("--only", "group", "--seeds", "0", "--list").out.count("done") == 4
    assert run("--only", "group", "--seeds", "0").out == page and len(done["trained"]) == 4
    run("--only", "group", "--only", "length", "--seeds", "0")
    assert len(done["trained"]) == 5  # of one of the four, captions cut to a budget were not measured


def test_the_embedded_model_is_measured_as_each_arm_is(bench):
    run, done = bench
    found = json.loads(run("--only", "length", "--seeds", "0", "--json").out)["length"]
    assert found["against"] == "untrained"
    assert {look for model, look in done["measured"] if model == "tiny"} == {
        Look("text", "current", budget, 1.0) for budget in (None, 40, 20, 10)
    }
    for row in found["arms"].values():
        assert row["figures"]["unified"]["difference"] == pytest.approx(0.1 + 0.2 / 4)


def test_the_list_tells_what_is_left_and_trains_nothing(bench, tmp_path):
    run, done = bench
    before = run("--only", "group", "--seeds", "0", "--list").out.splitlines()
    assert not done["trained"] and not (tmp_path / "runs").exists()
    assert len(before) == 4 + 1 and "left, of 4 runs" in before[-1] and "group/16" in before[3]
    run("--only", "reward", "--seeds", "0")
    after = run("--only", "group", "--seeds", "0", "--list").out.splitlines()
    assert after[0].split()[0] == "done" and "done" not in after[1]  # reward/clip is group/8


def test_stages_that_several_runs_share_are_trained_once(bench, tmp_path):
    """Of six chains of the four stages P, C, U, G: P, PC, PCU, PCUG, C, CU, CUG, PU, PUG, PCG, PCGU; not 20."""
    run, done = bench
    listed = run("--only", "order", "--seeds", "0", "--list").out
    run("--only", "order", "--seeds", "0")
    assert len(done["trained"]) == 6 - 1  # one chain is the beginning of another
    assert done["stages"] == 11
    by_name = {folder.name: folder for folder in (tmp_path / "runs").iterdir()}
    whole, parted = (
        next(by_name[line.split()[6]] for line in listed.splitlines() if line.endswith(f"order/{arm}"))
        for arm in ("all", "without_understanding")
    )
    assert (parted / "2_cold_start").resolve() == whole / "2_cold_start"
    assert not (parted / "3_generation").is_symlink()


def test_what_a_deleted_run_was_linked_for_is_trained_anew(bench, tmp_path):
    run, _ = bench
    run("--only", "order", "--seeds", "0")
    links = [path for path in (tmp_path / "runs").glob("*/*") if path.is_symlink()]
    gone = {link.resolve().parent for link in links}
    for folder in (*gone, tmp_path / "measured"):
        shutil.rmtree(folder)
    assert not any(link.exists() for link in links)
    run("--only", "order", "--seeds", "0")
    assert all(path.exists() for path in (tmp_path / "runs").glob("*/*"))


def test_figures_of_other_weights_are_not_put_into_one_table(bench, tmp_path, monkeypatch):
    """Runs are named for what was set, and "tiny" is whatever the package brings."""
    run, done = bench
    run("--only", "group", "--seeds", "0")
    digest = command.fingerprint.of_content
    monkeypatch.setattr(command.fingerprint, "of_content", lambda name: digest(name)[::-1])
    told = run("--only", "group", "--seeds", "1", code=1).err
    assert "of another tiny, which holds other weights or settings now; take another --workdir" in told
    assert len(done["trained"]) == 4
    (tmp_path / "weights.json").unlink()
    run("--only", "group", "--seeds", "1")


def test_a_call_keeps_the_ablations_of_earlier_ones(bench, tmp_path):
    run, done = bench
    first = json.loads(run("--only", "group", "--seeds", "0", "--json").out)
    length = json.loads(run("--only", "length", "--seeds", "1", "--json").out)
    assert json.loads((tmp_path / "ablations.json").read_text()) == first | length
    page = (tmp_path / "ablations.md").read_text()
    assert "## group" in page and "## length" in page and "Seeds: 1. Scenes: 6. Steps: 3." in page
    # Another seed alone replaces the ablation's figures; all of its seeds together are then had without training.
    run("--only", "group", "--seeds", "1")
    assert json.loads((tmp_path / "ablations.json").read_text())["group"]["seeds"] == [1]
    trained = len(done["trained"])
    both = json.loads(run("--only", "group", "--seeds", "0", "1", "--json").out)
    assert both["group"]["seeds"] == [0, 1] and len(done["trained"]) == trained
    assert json.loads((tmp_path / "ablations.json").read_text()) == length | both


def test_a_table_of_something_else_is_left_alone_before_anything_is_trained(bench, tmp_path):
    run, done = bench
    (tmp_path / "ablations.json").write_text('{"group": 1}')
    assert "is no table of ablations; remove it" in run("--only", "group", "--seeds", "0", code=1).err
    assert not done["trained"] and (tmp_path / "ablations.json").read_text() == '{"group": 1}'


def test_a_seed_twice_is_refused(bench):
    run, _ = bench
    assert "each seed once" in run("--seeds", "1", "1", code=1).err


def test_the_page_marks_what_rewarded_and_what_is_sure():
    sure = {"treated": 0.9, "control": 0.8, "difference": 0.1, "low": 0.05, "high": 0.15, "by_seed": [0.1, 0.1]}
    unsure = sure | {"low": -0.01}
    arms = {
        "clip": {"rewarded": ["clip"], "figures": {"clip": sure, "words": unsure}},
        "dinov2": {"rewarded": ["dinov2"], "figures": {"clip": sure, "words": unsure | {"treated": 21.26}}},
    }
    study = {"question": "Which?", "against": "clip", "seeds": [0, 1], "scenes": 8, "arms": arms}
    lines = table.to_markdown({"reward": study}).splitlines()
    start = lines.index("| arm | CLIP | words |")
    assert lines[start + 2 : start + 4] == [
        "| clip | 0.900† | 0.9 |",
        "| dinov2 | **0.900 (+0.100 [+0.050, +0.150])** | 21.3 (+0.1 [-0.0, +0.1]) |",
    ]


def test_without_a_scorer_that_rewarded_neither_nothing_is_held_out():
    runs = [recorded(clip=0.5, dinov2=0.5)]
    assert "held_out" not in table.arm_row(runs, runs, ("clip", "dinov2"), draws=10)
    assert "held_out" in table.arm_row(runs, runs, ("clip",), draws=10)


QUICK = '''"""Does the interface matter?"""
from ml_collections import ConfigDict
from uae_jax.training.configure import parse_arg

CUT = {{"max_new_tokens": 3}}
ARMS = {{"text": CUT, "answer_hidden": CUT, "text_twice": CUT}}
AGAINST = "untrained"


def get_config(arg=None):
    arg = parse_arg(arg, arm="text", seed=0, steps=1)
    scenes = {{"kind": "scenes", "scenes": {{"count": 16, "seed": 0, "size": 64, "levels": ()}}}}
    paint = {{"steps": 2, "guidance": 1.0}}
    settings = {{"model": "{model}", "group": 2, "paint": paint, "pictures": 0}}
    settings["interface"] = arg.arm.removesuffix("_twice")
    settings |= {{"text": {{"max_tokens": 4, "max_pixels": 1024}}, "reward": ({{"name": "clip"}},), "kl": 0.0}}
    settings["encoder"] = {{"mode": "lora", "rank": 2, "frozen": ("vision/.*",)}}
    data = {{"sources": [scenes], "resolution": 64, "with_captions": False}}
    run = {{"steps": arg.steps, "batch_size": 8, "seed": arg.seed, "log_every": 1, "checkpoint_every": 1}}
    first = {{"stage": "gen_for_understanding", "settings": settings, "data": data, **run}}
    again = {{**first, "settings": {{**settings, "model": "previous"}}}}
    names = ("first", "second") if arg.arm == "text_twice" else ("first",)
    return ConfigDict({{"stages": names, "first": first, **({{"second": again}} if len(names) == 2 else {{}})}})
'''


@pytest.mark.slow
@pytest.mark.exhaustive
def test_real_runs_go_the_whole_way(tmp_path, capsys):
    uae.save_published(random_uae(), tmp_path / "model")
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations/quick.py").write_text(QUICK.format(model=tmp_path / "model"))
    arguments = ["--workdir", str(tmp_path / "work"), "--configs", str(tmp_path / "ablations"), "--seeds", "3"]
    assert cli.main(["bench", "ablate", *arguments, "--scenes", "2", "--json", "--quiet"]) == 0
    arms = json.loads(capsys.readouterr().out)["quick"]["arms"]
    assert list(arms) == ["text", "answer_hidden", "text_twice"]
    for arm in arms.values():
        assert {"unified", "held_out", "clip", "dinov3", "painting_accuracy"} <= set(arm["figures"])
        assert arm["figures"]["words"]["treated"] <= 4  # cut
    runs = {tuple(path.name.split("+")[:-1]): path for path in (tmp_path / "work/runs").iterdir()}
    assert sorted(runs) == [("first",), ("first", "second")]  # two of the former
    link = runs["first", "second"] / "1_first"
    assert link.is_symlink() and link.resolve().parent == tmp_path / "work/runs"
    assert len(list((tmp_path / "work/measured").iterdir())) == 5  # each, and where two kinds of them started
