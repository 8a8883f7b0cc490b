"""Each arm of an ablation differs from the first in what its file says, and arms that are trained alike share a run."""

import json
from pathlib import Path

import pytest

from uae_jax.bench.ablations import cost, studies
from uae_jax.tiny.figures import Look
from uae_jax.training import configure

FOLDER = Path(__file__).parents[3] / "configs/ablations"
STUDIES = {study.name: study for study in studies.read(FOLDER)}
FIRST = STUDIES["interface"].run("text", 0)


def differences(study, arm, *, stages=2):
    """What an arm changes in each stage of the loop: field -> its new value."""
    run = STUDIES[study].run(arm, 0)
    assert len(run.stages) == len(FIRST.stages) == stages
    lines = [configure.differences(one, other) for (_, one), (_, other) in zip(FIRST.stages, run.stages, strict=True)]
    return [dict((line.split(": ")[0], line.split(" -> ")[1]) for line in each) for each in lines]


def test_all_arms_of_all_ablations_are_there_and_load():
    assert list(STUDIES) == ["group", "interface", "length", "order", "reward", "rounds"]
    for study in STUDIES.values():
        assert study.question.endswith("?")
        for arm in study.arms:
            run = study.run(arm, 1, steps=5)
            assert run.start == "tiny" and cost.seconds(run) > 0
            assert [experiment.settings.model for _, experiment in run.stages[1:]] == ["previous"] * (
                len(run.stages) - 1
            )
            assert all(experiment.seed % 1000 == 1 for _, experiment in run.stages)


@pytest.mark.parametrize(
    ("arm", "changes"),
    [
        ("text_base", {"settings.text.conditioning": '"base"'}),
        ("answer_hidden", {"settings.interface": '"answer_hidden"'}),
    ],
)
def test_an_interface_is_changed_in_both_stages_and_nothing_else(arm, changes):
    assert differences("interface", arm) == [changes, changes]


def test_a_reward_changes_the_weights_and_nothing_else():
    assert (
        differences("reward", "dinov2")
        == [{"settings.reward[0].weight": "0.0", "settings.reward[2].weight": "1.0"}] * 2
    )
    mixture = STUDIES["reward"].run("clip_dinov2", 0)
    assert mixture.rewarded == ("clip", "dinov2")  # two are held out
    # All four are computed in every arm, so that they can be held out.
    for arm in STUDIES["reward"].arms:
        for _, experiment in STUDIES["reward"].run(arm, 0).stages:
            assert [part.name for part in experiment.settings.reward] == list(studies.UNIFIED)


@pytest.mark.parametrize("arm", ["2", "4", "16"])
def test_groups_of_all_sizes_cost_the_same(arm):
    run = STUDIES["group"].run(arm, 0)
    for (_, one), (_, other) in zip(FIRST.stages, run.stages, strict=True):
        assert other.settings.group == int(arm) != one.settings.group
        assert other.settings.group * other.batch_size == one.settings.group * one.batch_size
    assert all(set(each) == {"settings.group", "batch_size"} for each in differences("group", arm))
    assert cost.seconds(run) == pytest.approx(cost.seconds(FIRST))


@pytest.mark.parametrize("study", ["group", "interface", "length", "reward"])
def test_one_stage_alone_is_trained_as_in_the_loop(study):
    for arm in STUDIES[study].arms:
        both = STUDIES[study].run(arm, 0).stages
        for number, stage in enumerate(("understanding", "generation")):
            ((name, experiment),) = STUDIES[study].run(arm, 0, stage=stage).stages
            changed = configure.differences(both[number][1], experiment)
            # The second stage of two starts from the first one's result, a stage alone from the embedded model.
            assert name == stage and [line.split(": ")[0] for line in changed] == ["settings.model"] * number


def test_orders_are_of_several_stages():
    for study in ("order", "rounds"):
        with pytest.raises(ValueError, match="'stage': unknown"):
            STUDIES[study].run(next(iter(STUDIES[study].arms)), 0, stage="generation")
    with pytest.raises(ValueError, match="wanted one of understanding, generation, or none"):
        STUDIES["group"].run("2", 0, stage="pretrain")


def test_the_order_of_stages_and_each_left_out():
    stages = {arm: [e.stage for _, e in STUDIES["order"].run(arm, 0).stages] for arm in STUDIES["order"].arms}
    whole = ["pretrain", "cold_start", "gen_for_understanding", "understanding_for_gen"]
    assert stages.pop("all") == whole
    assert stages.pop("generation_first") == [*whole[:2], *reversed(whole[2:])]
    assert sorted(stages.values()) == sorted([stage for stage in whole if stage != left_out] for left_out in whole)


def test_rounds_are_of_as_many_updates_in_all():
    for arm, count in (("one", 1), ("two", 2), ("four", 4)):
        experiments = [experiment for _, experiment in STUDIES["rounds"].run(arm, 0, steps=40).stages]
        assert [e.stage for e in experiments] == ["gen_for_understanding", "understanding_for_gen"] * count
        assert [e.steps for e in experiments] == [40 // count] * 2 * count
        for number, experiment in enumerate(experiments):  # nothing else tells them apart, guidance least of all
            (_, once) = STUDIES["rounds"].run("one", 0, steps=40).stages[number % 2]
            assert experiment.optimiser.warmup == once.optimiser.warmup // count > 0
            changed = {line.split(": ")[0] for line in configure.differences(once, experiment)}
            parts = {"steps", "evaluation.every", "settings.model", "optimiser.warmup"}
            # Others in every round, as in one long one.
            pictures = {"seed", "data.sources[0].scenes.seed"} if number > 1 else set()
            assert pictures <= changed <= pictures | parts, changed


@pytest.mark.parametrize("study", STUDIES)
def test_all_arms_paint_without_guidance(study):
    for arm in STUDIES[study].arms:
        settings = [e.settings for _, e in STUDIES[study].run(arm, 0).stages]
        assert {s.paint.guidance for s in settings if hasattr(s, "paint")} == {1.0}


def test_what_is_trained_alike_is_trained_once():
    same = [("interface", "text"), ("reward", "clip"), ("group", "8"), ("rounds", "one"), ("length", "tokens_20")]
    assert {STUDIES[study].run(arm, 0).name for study, arm in same} == {FIRST.name}
    others = [STUDIES["interface"].run("text", 1), STUDIES["interface"].run("text", 0, steps=7)]
    others += [STUDIES[study].run(arm, 0) for study, arm in (("reward", "dinov2"), ("rounds", "two"))]
    assert len({FIRST.name, *(run.name for run in others)}) == 5  # another seed, other steps, another reward or order


def test_models_are_measured_as_they_were_trained_unless_it_is_said():
    looks = {
        (study, arm): STUDIES[study].run(arm, 0).look(STUDIES[study].arms[arm])
        for study in ("interface", "length")
        for arm in STUDIES[study].arms
    }
    plain = Look("text", "current", guidance=1.0)
    assert looks["interface", "text"] == looks["length", "whole"] == plain
    assert looks["interface", "text_base"] == Look("text", "base", guidance=1.0)
    assert looks["interface", "answer_hidden"] == Look("answer_hidden", "current", guidance=1.0)
    assert looks["interface", "answer_hidden_in_words"] == plain
    assert looks["length", "tokens_20"] == Look("text", "current", 20, 1.0)


def test_other_folders_and_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no ablations; go to the top"):
        studies.read(tmp_path)
    with pytest.raises(ValueError, match="'rewards'; the nearest is 'reward'"):
        studies.read(FOLDER, ["rewards"])
    (tmp_path / "one.py").write_text('"""One?"""\nARMS = {"a": {}}\ndef get_config(arg=None): pass\n')
    with pytest.raises(ValueError, match="wanted two names or more"):
        studies.read(tmp_path)
    (tmp_path / "one.py").write_text('"""One?"""\nARMS = {"a": {}, "b": {}}\nAGAINST = "c"\n')
    with pytest.raises(ValueError, match="wanted 'untrained' or one of a, b"):
        studies.read(tmp_path)
    study = STUDIES["length"]
    with pytest.raises(ValueError, match="max_new_token"):
        study.run("whole", 0).look({"max_new_token": 3})


def test_what_was_run_tells_how_long_the_rest_takes(tmp_path):
    assert cost.observed([FIRST], tmp_path) == {}
    folder = tmp_path / FIRST.name / "1_understanding"
    folder.mkdir(parents=True)
    lines = [{"step": step, "steps_per_second": rate} for step, rate in ((2, 0.01), (4, 0.5), (6, 0.5))]
    text = "".join(json.dumps(line) + "\n" for line in [{"step": 1}, *lines])
    (folder / "metrics.jsonl").write_text(text + '{"step": 8, "steps_per')  # its process was killed
    speeds = cost.observed([FIRST], tmp_path)
    assert speeds == {"gen_for_understanding": pytest.approx(2 / (12 * 8))}  # two seconds a step of 96 captions
    generation = 120 * 16 * 8 * cost.SECONDS["understanding_for_gen"]
    assert cost.seconds(FIRST, speeds) == pytest.approx(2 * 120 + generation)
