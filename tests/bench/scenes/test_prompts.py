"""Prompts, captions and questions made from scenes say what is so, and cannot be read otherwise."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from uae_jax.bench import judging, questions
from uae_jax.bench.scenes import asked, dpg, held_out, prompts
from uae_jax.data.scenes import claims, detect, parse_caption, render, score_painting_of_caption


@pytest.fixture
def drawn(monkeypatch):
    """The scenes that things are made of, in their order."""
    scenes, usual = [], held_out.draw

    def draw(*args, **more):
        for scene, draws in usual(*args, **more):
            scenes.append(scene)
            yield scene, draws

    monkeypatch.setattr(held_out, "draw", draw)
    return scenes


@pytest.mark.parametrize("benchmark", prompts.TAGS)
def test_a_scene_is_what_its_prompt_asks_for(benchmark, drawn):
    lines = prompts.metadata(benchmark, 4)
    assert [line["tag"] for line in lines] == [tag for tag in prompts.TAGS[benchmark] for _ in range(4)]
    for line, scene in zip(lines, drawn, strict=True):
        said = parse_caption(line["prompt"])
        assert said.grammatical and set(said.entities) == set(
            prompts.TAGS[benchmark][line["tag"]].claims(scene).entities
        )
        assert score_painting_of_caption(render(scene), line["prompt"]).accuracy == 1, line
        # What the official form says is the same: as many objects, of these kinds.
        assert sum(each["count"] for each in line["include"]) == len(scene.objects)
        assert {each["class"] for each in line["include"]} == {item.shape for item in scene.objects}


def test_what_a_prompt_does_not_ask_for_is_wrong(drawn):
    lines = prompts.metadata("geneval", 3)
    by_tag = {line["tag"]: (line["prompt"], scene) for line, scene in zip(lines, drawn, strict=True)}
    one, _ = by_tag["single_object"]
    _, two = by_tag["two_object"]
    assert score_painting_of_caption(render(two), one).accuracy == 0
    prompt, scene = by_tag["position"]
    mirrored = np.ascontiguousarray(render(scene)[::-1, ::-1])  # whatever was left of is right of now, and above below
    assert len(parse_caption(prompt).relations) == 1
    assert score_painting_of_caption(mirrored, prompt).relation == 0


def test_geneval_names_its_relations_as_its_scorer_reads_them(drawn):
    both = zip(prompts.metadata("geneval", 5), drawn, strict=True)
    for line, scene in [(line, scene) for line, scene in both if line["tag"] == "position"]:
        kind, of = line["include"][1]["position"]
        first, second = (next(o for o in scene.objects if o.shape == each["class"]) for each in line["include"])
        assert of == 0 and claims.holds(kind, second, first)
        assert len(judging.geneval_checks(line)) == 3  # is there the one, the other, and is it where it should be


def test_more_prompts_begin_with_the_same_ones():
    few, more = (prompts.metadata("genevalpp", count) for count in (1, 2))
    assert few == more[::2]


def test_captions_of_dpg_are_long_and_their_questions_as_official_ones(drawn, tmp_path):
    captions = dpg.prompts(3)
    assert all(37 <= len(caption.split()) <= 130 for caption in captions.values())
    dpg.write(captions, tmp_path / "prompts", tmp_path / "dpg_bench.csv")
    assert judging.read_dpg(tmp_path / "dpg_bench.csv") == dpg.checks(captions)
    assert {file.stem for file in (tmp_path / "prompts").iterdir()} == set(captions)
    with (tmp_path / "dpg_bench.csv").open(newline="") as file:
        broad = {row["category_broad"] for row in list(csv.DictReader(file))[1:]}
    assert broad == {"entity", "attribute", "relation", "global", "other"}
    for caption, scene in zip(captions.values(), drawn, strict=True):
        # Five questions about every object, one about every relation, their number and the background.
        relations = len(parse_caption(caption).relations)
        assert len(dpg.answers(caption, render(scene))) == 5 * len(scene.objects) + relations + 2
        assert all(dpg.answers(caption, render(scene)))


def test_one_thing_wrong_takes_what_depends_on_it_along():
    caption = "there are two shapes. a large solid red circle is on the left. a small solid blue star is on the right."
    checks, facts = dpg.checks({"p": caption})["p"], dpg.facts(parse_caption(caption))
    found = dpg.Found(parse_caption(caption), parse_scene("a large solid red square is on the left."))
    right = [fact.holds(found) for fact in facts]
    told = dict(zip([check.text for check in checks], right, strict=True))
    # There is one object, a red square: matched with the circle, for it is red, but no circle.
    assert told["Is there a circle?"] is False and told["Is the circle red?"] is True
    assert told["Is there a star?"] is False and told["Are there two objects?"] is False
    assert judging.dpg_score(checks, right) == 0


def parse_scene(caption):
    """A scene of one object, as `detect` would find it."""
    (said,) = parse_caption(caption).entities
    scene = next(scene for scene, _ in held_out.draw(99, 1, held_out.of(1)))
    item = scene.objects[0].__class__(said.shape, said.colour, said.size, said.fill, 1 / 6, 1 / 2, 0.2)
    return scene.__class__("white", (item,))


def test_questions_about_pictures_are_right(tmp_path):
    asked.write(3, tmp_path / "questions.jsonl", 64)
    found = questions.read(tmp_path / "questions.jsonl")
    assert len(found) == 3 * len(asked.TOPICS) * len(asked.FORMS)
    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    for question, line in zip(found, lines, strict=True):
        scene = detect(np.asarray(Image.open(question.image)))
        assert questions.right(question, true_answer(question.text, scene)), (question, scene)
        assert len(set(question.choices)) == (asked.CHOICES if line["task"].endswith("choices") else 0)


def true_answer(text, scene):
    """Read off the picture, in other words than the question's writer has."""
    shapes = {item.shape: item for item in scene.objects}
    words = text.rstrip("?").split()
    if words[0] == "How":
        return str(sum(item.shape in (words[2][:-1], words[2][:-2]) for item in scene.objects))
    if words[1] == "shape":
        return f"a {next(item.shape for item in scene.objects if item.colour == words[4])}"
    item = shapes[words[-1]]
    return item.colour if words[1] == "colour" else asked.PLACES[item.position][0]
