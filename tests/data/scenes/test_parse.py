"""Reading captions: exact where they are grammatical, forgiving where not."""

import random

import pytest

from uae_jax.data.scenes import Claims, Description, Relation, parse_caption, vocabulary


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("a red circle on white", Claims((Description("circle", "red"),), "white")),
        (
            "an outlined orange star and two small blue hearts.",
            Claims((Description("star", "orange", fill="outlined"), *[Description("heart", "blue", "small")] * 2)),
        ),
        ("there are three objects. the background is sky over sand.", Claims((), "sky over sand", 3)),
        ("the picture shows one shape against white fading to gray.", Claims((), "white fading to gray", 1)),
        (
            "in the upper left corner there is a big violet box with stripes.",
            Claims((Description("square", "purple", "large", "striped", "top left"),)),
        ),
        (
            "two red moons sit at the top and on the right.",
            Claims(tuple(Description("moon", "red", position=p) for p in ("top", "right"))),
        ),
        (
            "a red disc at the top. a blue star on the left. the red circle is to the right of the star.",
            Claims(
                (Description("circle", "red", position="top"), Description("star", "blue", position="left")),
                relations=(Relation(0, "right of", 1),),
            ),
        ),
        (
            # Never named before: a relation names them.
            "the red circle is above the blue circle.",
            Claims((Description("circle", "red"), Description("circle", "blue")), relations=(Relation(0, "above", 1),)),
        ),
    ],
)
def test_grammatical_captions(text, claims):
    assert parse_caption(text) == claims
    assert parse_caption(text.upper().replace(" ", "  ")) == claims  # case and spacing say nothing


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("a lovely red, shiny circle", (Description("circle"),)),  # the comma ends "red"
        ("a red shiny circle", (Description("circle", "red"),)),
        ("circle red", (Description("circle"),)),
        ("red circle", (Description("circle", "red"),)),
        ("a orange circle", (Description("circle", "orange"),)),
        ("an red circle", (Description("circle", "red"),)),
        ("a red circles", (Description("circle", "red"),)),
        ("two red circle", (Description("circle", "red"),) * 2),
        ("a red object on the left", (Description(None, "red", position="left"),)),
        ("there are a red circle", (Description("circle", "red"),)),
        ("a red circle top left", (Description("circle", "red", position="top left"),)),
        ("a red small circle", (Description("circle", "red", "small"),)),
        ("the red circle is", (Description("circle", "red"),)),
    ],
)
def test_ungrammatical_captions_give_what_can_be_read(text, entities):
    claims = parse_caption(text)
    assert claims.entities == entities
    assert not claims.grammatical


def test_a_definite_mention_adds_to_what_was_said():
    text = "a red circle. a blue star. the red circle on the left is above the star."
    claims = parse_caption(text)
    assert claims.entities == (Description("circle", "red", position="left"), Description("star", "blue"))
    assert claims.relations == (Relation(0, "above", 1),)


def test_the_last_word_counts():
    claims = parse_caption("there are two objects. there are three objects. on white. the background is black.")
    assert (claims.total, claims.background) == (3, "black")


def test_nothing_raises():
    chance = random.Random(0)
    bag = [*vocabulary(), ".", ",", "dragon", "Ünïcode", "🙂", "7", "\n", "\x00", "-"]
    for _ in range(2000):
        text = " ".join(chance.choices(bag, k=chance.randrange(25)))
        claims = parse_caption(text)
        ends = [end for r in claims.relations for end in (r.subject, r.other)]
        assert all(0 <= end < len(claims.entities) for end in ends)
    assert parse_caption("") == Claims(grammatical=False)
    assert parse_caption("above. left of the. is. a. two.") == Claims(grammatical=False)


def test_long_nonsense_is_read_in_linear_time():
    # A grammar that backtracks would not come back from this.
    assert not parse_caption("a red circle, " * 2000 + "dragon").grammatical
