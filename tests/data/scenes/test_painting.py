"""Painting scores: perfect images score 1, and each mistake lowers exactly what it is about."""

import dataclasses

import pytest

from tests.data.scenes.worlds import fits, item, other_values, replaced, scenes
from uae_jax.data.scenes import (
    Claims,
    PaintingScore,
    Scene,
    render,
    scene_rng,
    score_painting,
    score_painting_of_caption,
)
from uae_jax.data.scenes.draws import Draws
from uae_jax.data.scenes.graph import BACKGROUNDS, POSITIONS, RADII_PX, SIDE_PX
from uae_jax.data.scenes.painting import judge

WANTED = 25  # scenes that each mistake is made in


def lowered(score: PaintingScore) -> set[str]:
    return {name for name, value in vars(score).items() if value < 1}


def painted_wrong(change):
    """Makes a mistake in as many scenes as there is room for it in; yields what it lowered."""
    done = 0
    for i, scene in enumerate(scenes(400, seed=31)):
        wrong = change(scene, Draws(scene_rng(8, i)))
        if wrong is not None and fits(wrong):
            done += 1
            score = score_painting(render(wrong), scene)
            assert score.accuracy == 0
            yield lowered(score)
        if done == WANTED:
            return
    raise AssertionError(f"only {done} scenes have room for this")


def swap_value(attribute):
    def change(scene, draw):
        index = int(draw.uniform() * len(scene.objects))
        return replaced(scene, index, **{attribute: draw.choice(other_values(attribute, scene, index))})

    return change


def move(scene, draw):
    index = int(draw.uniform() * len(scene.objects))
    cell = POSITIONS.index(draw.choice(other_values("position", scene, index)))
    x, y = (cell % 3 + draw.between(0.1, 0.9)) / 3, (cell // 3 + draw.between(0.1, 0.9)) / 3
    return replaced(scene, index, x=x, y=y)


def resize(scene, draw):
    index = int(draw.uniform() * len(scene.objects))
    size = draw.choice(other_values("size", scene, index))
    return replaced(scene, index, size=size, radius=draw.between(*RADII_PX[size]) / SIDE_PX)


def remove(scene, draw):
    index = int(draw.uniform() * len(scene.objects))
    left = scene.objects[:index] + scene.objects[index + 1 :]
    return dataclasses.replace(scene, objects=left) if left else None


def add(scene, draw):
    cell = POSITIONS.index(draw.choice(other_values("position", scene, 0)))
    twin = dataclasses.replace(scene.objects[0], x=(cell % 3 + 0.5) / 3, y=(cell // 3 + 0.5) / 3)
    return dataclasses.replace(scene, objects=(*scene.objects, twin))


def change_background(scene, draw):
    return dataclasses.replace(scene, background=draw.choice([b for b in BACKGROUNDS if b != scene.background]))


def exchange(attribute):
    def change(scene, draw):
        if len(scene.objects) < 2:
            return None
        a, b = scene.objects[:2]
        if getattr(a, attribute) == getattr(b, attribute):
            return None
        wrong = replaced(scene, 0, **{attribute: getattr(b, attribute)})
        return replaced(wrong, 1, **{attribute: getattr(a, attribute)})

    return change


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (swap_value("colour"), {"colour"}),
        (swap_value("shape"), {"shape"}),
        (swap_value("fill"), {"fill"}),
        (resize, {"size"}),
        (move, {"position"}),
        (remove, {"count"}),
        (add, {"count"}),
        (change_background, {"background"}),
        (exchange("colour"), {"binding"}),
        (exchange("shape"), {"binding"}),
    ],
    ids=[
        "recolour",
        "reshape",
        "refill",
        "resize",
        "move",
        "remove",
        "add",
        "background",
        "swap colours",
        "swap shapes",
    ],
)
def test_a_mistake_lowers_its_score_alone(change, names):
    for got in painted_wrong(change):
        assert got == names


def test_scores_are_shares():
    asked = Scene("white", (item(x=0.2), item("star", "blue", x=0.5), item("moon", "green", x=0.8)))
    wrong = replaced(asked, 1, colour="pink")
    assert score_painting(render(wrong), asked).colour == pytest.approx(2 / 3)
    fewer = dataclasses.replace(asked, objects=asked.objects[:1])
    assert score_painting(render(fewer), asked).count == pytest.approx(1 / 3)
    assert score_painting(render(asked), fewer).count == pytest.approx(1 / 3)


def test_an_empty_painting_of_something_scores_nothing_but_its_background():
    score = score_painting(render(Scene("white", ())), Scene("white", (item(),)))
    assert (score.count, score.shape, score.colour, score.position, score.background) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("caption", "names"),
    [
        ("a red circle at the top left", set()),
        ("a red circle", set()),  # where and how large is left open
        ("a red circle in the center", {"position"}),
        ("a blue circle at the top left", {"colour"}),
        ("a red star at the top left", {"shape"}),
        ("a large red circle", {"size"}),
        ("a red circle with stripes", {"fill"}),
        ("a red circle on black", {"background"}),
        ("two red circles", {"count"}),
        ("a red circle and a blue star", {"count"}),
        ("there are two objects. a red circle.", {"count"}),
        ("", {"count"}),  # nothing was asked for, something is there
    ],
)
def test_only_what_a_caption_asks_for_is_judged(caption, names):
    image = render(Scene("white", (item(x=0.2, y=0.2),)))
    score = score_painting_of_caption(image, caption)
    assert lowered(score) == names
    assert score.accuracy == (not names)


def test_relations_are_judged_on_what_was_painted():
    image = render(Scene("white", (item(x=0.2), item("star", "blue", x=0.8))))
    right = "a red circle and a blue star. the red circle is left of the blue star."
    assert score_painting_of_caption(image, right).accuracy == 1
    assert lowered(score_painting_of_caption(image, right.replace("left", "right"))) == {"relation"}


def test_a_caption_that_names_some_of_the_objects_and_their_number():
    image = render(Scene("white", (item(x=0.2), item("star", "blue", x=0.8))))
    assert score_painting_of_caption(image, "there are two objects. a blue star.").accuracy == 1
    assert lowered(score_painting_of_caption(image, "a blue star")) == {"count"}


def test_nothing_asked_nothing_found():
    assert judge(Claims(), Scene("white", ())).accuracy == 1
