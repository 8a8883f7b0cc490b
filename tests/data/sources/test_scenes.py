"""The scene world as a source."""

import numpy as np
import pytest

from tests.data.sources.checks import check_contract
from uae_jax.data.config import ScenesConfig, SourceConfig
from uae_jax.data.scenes import parse_caption, render
from uae_jax.data.sources import SourceError, open_source


def opened(captions=(), **settings):
    return open_source(SourceConfig(captions=captions, scenes=ScenesConfig(**({"count": 6} | settings))))


def test_a_scene_and_its_captions():
    source = opened()
    record = source[2]
    assert record.image.shape == (64, 64, 3) and record.image.dtype == np.uint8
    assert list(record.captions) == ["tag", "short", "medium", "long", "exhaustive"]
    assert all(len(texts) == 4 and all(isinstance(text, str) for text in texts) for texts in record.captions.values())
    assert np.array_equal(record.image, render(source.scene(2)))
    check_contract(source)


def test_more_detail_takes_more_words():
    # Over 50 scenes the means must rise from level to level.
    source = opened(count=50, variants=1)
    means = [
        np.mean([len(source[n].captions[level][0].split()) for n in range(50)])
        for level in ("tag", "short", "medium", "long", "exhaustive")
    ]
    assert means == sorted(means)
    assert means[0] < 8 < 30 < means[-1]


def test_seed_and_index_decide_everything():
    a, b, other = opened(), opened(count=1000), opened(seed=1)
    assert np.array_equal(a[3].image, b[3].image)
    assert list(a[3].captions["long"]) == list(b[3].captions["long"])
    assert not np.array_equal(a[3].image, other[3].image)
    assert not np.array_equal(a[3].image, a[4].image)
    assert (a[3].id, other[3].id) == ("scenes:0:3", "scenes:1:3")


def test_wordings_differ():
    texts = opened(variants=8)[0].captions["exhaustive"]
    assert len(set(texts)) >= 6  # of 8; two of them may agree by chance
    assert texts[-1] == texts[7]


def test_levels_and_objects_as_asked():
    source = opened(captions=("long",), objects=(1.0, 0, 0, 0, 0, 0), count=20, size=32)
    assert list(source[0].captions) == ["long"]
    with pytest.raises(KeyError):
        source[0].captions["tag"]
    assert all(len(source.scene(n).objects) == 1 for n in range(20))
    assert source[0].image.shape == (32, 32, 3)


def test_captions_may_leave_things_open():
    # Without colours and all else that a caption need not say, only shapes are left, and fewer words the less is kept.
    source, world = opened(count=30, variants=1, keep=0.0), opened(count=30, variants=1)
    for n in range(30):
        claims = parse_caption(source[n].captions["long"][0])
        assert claims.background is None and claims.total is None and not claims.relations
        assert all(entity.shape and entity.colour is entity.size is entity.fill is None for entity in claims.entities)
    lengths = [
        sum(len(made[n].captions["long"][0].split()) for n in range(30))
        for made in (source, opened(count=30, variants=1, keep=0.5), world)
    ]
    assert lengths == sorted(set(lengths))


def test_what_there_is_not_is_told():
    with pytest.raises(SourceError, match="no caption level 'lang', the nearest is 'long'"):
        opened(captions=("lang",))
    with pytest.raises(SourceError, match="no caption level 'tags', the nearest is 'tag'"):
        opened(levels=("tags",))
    with pytest.raises(SourceError, match="count is 0, wanted 1 or more"):
        opened(count=0)
    with pytest.raises(SourceError, match=r"keep is 1\.5, wanted a probability"):
        opened(keep=1.5)


def test_no_files_are_taken_for_scenes(tmp_path):
    with pytest.raises(SourceError, match='kind is "scenes", which reads no files'):
        open_source(SourceConfig(path=str(tmp_path), kind="scenes"))
