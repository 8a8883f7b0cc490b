"""Captions: every level, true, grammatical, and in the words of the vocabulary."""

import collections
import re

import numpy as np
import pytest

from tests.data.scenes.worlds import item, scenes
from uae_jax.data.scenes import (
    LEVELS,
    Claims,
    Relation,
    Scene,
    parse_caption,
    scene_rng,
    score_caption,
    vocabulary,
    write_caption,
)
from uae_jax.data.scenes.captions import realise, select_claims
from uae_jax.data.scenes.claims import describe
from uae_jax.data.scenes.draws import Draws


def captions(level, count=300, keep=1.0):
    return [(s, write_caption(s, level, scene_rng(5, i), keep)) for i, s in enumerate(scenes(count))]


def words(text):
    return re.findall(r"[a-z]+", text)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_captions_are_grammatical_true_and_of_the_vocabulary(level, keep):
    known = set(vocabulary())
    for scene, text in captions(level, keep=keep):
        assert re.fullmatch(r"[a-z ,.]+", text)
        assert set(words(text)) <= known
        score = score_caption(text, scene)
        assert parse_caption(text).grammatical, text
        for name, tally in vars(score).items():
            assert tally.precision == 1, (name, text)


def test_the_vocabulary_is_small_and_all_of_it_is_used():
    assert len(vocabulary()) <= 250 and len(set(vocabulary())) == len(vocabulary())
    used = {word for level in LEVELS for _, text in captions(level, 1500) for word in words(text)}
    assert used == set(vocabulary())


def test_lengths_go_from_five_words_to_a_hundred():
    mean = {level: np.mean([len(words(text)) for _, text in captions(level)]) for level in LEVELS}
    assert list(mean.values()) == sorted(mean.values())
    assert 4.5 <= mean["tag"] <= 6.5
    assert max(len(words(text)) for _, text in captions("tag")) <= 9
    assert max(len(words(text)) for _, text in captions("exhaustive", 1500)) <= 125


def test_an_exhaustive_caption_says_everything():
    for scene, text in captions("exhaustive"):
        assert score_caption(text, scene).perfect, text


def test_details_grow_with_the_level_and_keep_thins_them_out():
    def recall(level, keep=1.0):
        return sum(
            (score_caption(text, s) for s, text in captions(level, keep=keep)), start=score_of_nothing()
        ).attribute

    def score_of_nothing():
        return score_caption(Claims(), Scene("white", ()))

    recalls = [recall(level).recall for level in LEVELS]
    assert recalls == sorted(recalls) and recalls[-1] == 1
    # shape always, the four other attributes half the time: 1/5 + 4/5 * 1/2
    assert recall("exhaustive", keep=0.5).recall == pytest.approx(0.6, abs=0.03)


def test_wording_varies_and_the_generator_decides_it():
    scene = scenes(10)[3]
    for level in LEVELS:
        texts = [write_caption(scene, level, scene_rng(0, i)) for i in range(50)]
        assert texts == [write_caption(scene, level, scene_rng(0, i)) for i in range(50)]
        assert len(set(texts)) >= 5


@pytest.mark.parametrize("level", LEVELS[1:])
@pytest.mark.parametrize("sentences", [True, False])
def test_what_is_written_is_read_back(level, sentences):
    for i, scene in enumerate(scenes(200)):
        draw = Draws(scene_rng(6, i))
        claims = select_claims(scene, level, draw)
        read = parse_caption(realise(claims, draw, sentences))
        assert collections.Counter(read.entities) == collections.Counter(claims.entities)
        assert (read.background, read.total) == (claims.background, claims.total)
        written = {(claims.entities[r.subject], r.kind, claims.entities[r.other]) for r in claims.relations}
        assert {(read.entities[r.subject], r.kind, read.entities[r.other]) for r in read.relations} <= written


def test_a_relation_that_words_cannot_tell_is_left_out():
    twins = tuple(describe(item(x=x)).without("position") for x in (0.2, 0.8))
    text = realise(Claims(twins, relations=(Relation(0, "left of", 1),)), Draws(scene_rng(0, 0)))
    assert "left" not in text and len(parse_caption(text).entities) == 2


def test_articles():
    draw = Draws(scene_rng(0, 0))
    texts = [realise(Claims((describe(item(colour=c)).without("size", "fill"),)), draw) for c in ("orange", "red")]
    assert "an orange" in texts[0] and "a red" in texts[1]


def test_an_unknown_level_is_refused():
    with pytest.raises(ValueError, match="level 'brief', wanted one of tag, short"):
        write_caption(scenes(1)[0], "brief", scene_rng(0, 0))
