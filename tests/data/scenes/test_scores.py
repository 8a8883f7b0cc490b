"""Caption scores: perfect captions score 1, and each mistake lowers exactly what it is about."""

import dataclasses

import pytest

from tests.data.scenes.worlds import ATTRIBUTES, item, misdescribed, other_values, scenes
from uae_jax.data.scenes import (
    CaptionScore,
    Claims,
    Description,
    Relation,
    Scene,
    Tally,
    parse_caption,
    scene_rng,
    score_caption,
)
from uae_jax.data.scenes.captions import realise, select_claims
from uae_jax.data.scenes.draws import Draws
from uae_jax.data.scenes.graph import BACKGROUNDS

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SCENES = 150


def lowered(score: CaptionScore) -> set[str]:
    """Names of all scores below 1, as "colour.precision"."""
    return {
        f"{name}.{side}"
        for name, tally in vars(score).items()
        for side in ("precision", "recall")
        if getattr(tally, side) < 1
    }


def both(*names):
    return {f"{name}.{side}" for name in names for side in ("precision", "recall")}


def told(least: int = 1):
    """(scene, its exhaustive claims, random choices) for scenes of `least` objects or more."""
    for i, scene in enumerate(scenes(SCENES)):
        if len(scene.objects) >= least:
            draw = Draws(scene_rng(7, i))
            yield scene, select_claims(scene, "exhaustive", draw), draw


def scored(claims: Claims, scene: Scene, draw: Draws) -> set[str]:
    """What is lowered after claims were put into words and read again."""
    return lowered(score_caption(realise(claims, draw), scene))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_a_wrong_attribute_lowers_that_attribute_alone(attribute):
    for scene, claims, draw in told():
        index = int(draw.uniform() * len(scene.objects))
        value = draw.choice(other_values(attribute, scene, index))
        assert scored(misdescribed(claims, index, **{attribute: value}), scene, draw) == both(attribute)


@pytest.mark.parametrize("attribute", ATTRIBUTES[1:])
def test_an_attribute_left_unsaid_lowers_its_recall_alone(attribute):
    for scene, claims, _ in told():
        unsaid = misdescribed(claims, 0, **{attribute: None})
        assert lowered(score_caption(unsaid, scene)) == {f"{attribute}.recall"}


def test_a_wrong_number_lowers_the_count_alone():
    for scene, claims, draw in told():
        wrong = dataclasses.replace(claims, total=len(scene.objects) % 6 + 1)
        assert scored(wrong, scene, draw) == both("count")


def test_a_wrong_background_lowers_the_background_alone():
    for scene, claims, draw in told():
        wrong = draw.choice([name for name in BACKGROUNDS if name != scene.background])
        assert scored(dataclasses.replace(claims, background=wrong), scene, draw) == both("background")


def test_a_wrong_relation_lowers_relations_alone():
    for scene, claims, draw in told(2):
        first, *rest = claims.relations
        wrong = dataclasses.replace(first, kind=OPPOSITE[first.kind])
        assert scored(dataclasses.replace(claims, relations=(wrong, *rest)), scene, draw) == both("relation")


def test_a_missing_object_lowers_recalls_alone():
    missing = {f"{name}.recall" for name in ("entity", "relation", *ATTRIBUTES)}
    for scene, claims, draw in told(2):
        last = len(claims.entities) - 1
        kept = tuple(r for r in claims.relations if last not in (r.subject, r.other))
        fewer = dataclasses.replace(claims, entities=claims.entities[:-1], relations=kept)
        assert scored(fewer, scene, draw) == missing


def test_an_invented_object_lowers_precisions_alone():
    invented = {f"{name}.precision" for name in ("entity", *ATTRIBUTES)}
    for scene, claims, draw in told():
        free = draw.choice(other_values("position", scene, 0))
        ghost = Description("star", "brown", "small", "striped", free)
        assert scored(dataclasses.replace(claims, entities=(*claims.entities, ghost)), scene, draw) == invented


def test_tallies_by_hand():
    scene = Scene("white", (item("circle", "red", x=0.2), item("star", "blue", x=0.8, size="large")))
    # Said: 3 entities, of which the green heart does not exist; star's size wrong; 1 of 2 relations true.
    score = score_caption(
        "a red circle, a small blue star and a green heart on black. "
        "the red circle is left of the blue star. the red circle is above the blue star.",
        scene,
    )
    assert score.entity == Tally(2, 3, 2, 2)
    assert score.shape == score.colour == Tally(2, 3, 2, 2)
    assert score.size == Tally(0, 1, 0, 2)
    assert score.fill == score.position == Tally(0, 0, 0, 2)
    assert score.attribute == Tally(4, 7, 4, 10)
    assert score.relation == Tally(1, 2, 2, 2)
    assert score.count == Tally(0, 0, 0, 1)
    assert score.background == Tally(0, 1, 0, 1)
    assert score.attribute.precision == pytest.approx(4 / 7) and score.attribute.recall == 0.4
    pooled = score + score
    assert pooled.attribute == Tally(8, 14, 8, 20)


def test_two_of_three_equal_objects():
    scene = Scene("white", tuple(item(x=x) for x in (0.2, 0.5, 0.8)))
    assert score_caption("two red circles", scene).entity == Tally(2, 2, 2, 3)
    assert score_caption("four red circles", scene).entity == Tally(3, 4, 3, 3)


def test_nothing_in_common_is_no_match():
    scene = Scene("white", (item("circle", "red"),))
    assert score_caption("a blue star in the center", scene).entity == Tally(0, 1, 0, 1)
    assert score_caption("a blue circle", scene).entity == Tally(1, 1, 1, 1)


def test_a_relation_holds_if_one_reading_makes_it_true():
    # "the red circle" may be either of two; one of them is left of the star.
    scene = Scene("white", (item(x=0.9), item(x=0.1), item("star", "blue")))
    for kind in ("left of", "right of"):
        assert score_caption(f"a red circle and a blue star. the red circle is {kind} the star", scene).relation.right
    assert not score_caption("the red circle is above the blue star", scene).relation.right
    assert not score_caption(Claims((Description("star"),), relations=(Relation(0, "above", 0),)), scene).relation.right


def test_an_empty_caption_claims_nothing_and_finds_nothing():
    score = score_caption("", scenes(1)[0])
    assert not parse_caption("").grammatical
    assert score.entity.precision == 1 and score.entity.recall == 0
    assert score.attribute.recall == 0 and score.background.recall == 0
