"""Held-out scenes, judged by what is in them."""

import pytest

from tests.data.scenes.worlds import item, scenes
from uae_jax.data.scenes import Scene, render, scene_rng, write_caption
from uae_jax.stages.scene_scores import judge

RED, BLUE = item("circle", "red", x=0.25, y=0.25), item("square", "blue", x=0.75, y=0.75)
PAIR = Scene("white", (RED, BLUE))


def test_perfect_captions_and_paintings_score_one():
    worlds = scenes(6, seed=5)
    images = [render(scene) for scene in worlds]
    captions = [write_caption(scene, "exhaustive", scene_rng(1, i)) for i, scene in enumerate(worlds)]
    assert judge(images, captions, images) == dict.fromkeys(
        (
            "attribute_precision",
            "attribute_recall",
            "grammatical",
            "prompt_accuracy",
            "painting_accuracy",
        ),
        1.0,
    )


def test_each_score_says_what_its_name_says():
    # Said: shape and colour of one of two objects, one of them wrong: 1 of 2 right, 1 of 2 * 5 found. Painted as asked
    # for, a green circle on white: all of the caption, but not the scene: count 1/2, shape, size, fill, position,
    # background and binding as they should be of what is there, colour not.
    painted = render(Scene("white", (item("circle", "green", x=0.25, y=0.25),)))
    got = judge([render(PAIR)], ["a green circle."], [painted])
    assert got["attribute_precision"] == pytest.approx(0.5)
    assert got["attribute_recall"] == pytest.approx(0.1)
    assert got["grammatical"] == got["prompt_accuracy"] == 1
    assert got["painting_accuracy"] == pytest.approx((0.5 + 1 + 0 + 1 + 1 + 1 + 1 + 1) / 8)


def test_nonsense_is_no_caption():
    got = judge([render(PAIR)], ["colourless green ideas sleep"], [render(PAIR)])
    assert got["grammatical"] == 0 and got["attribute_recall"] == 0
