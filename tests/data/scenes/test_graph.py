"""What sampling promises of every scene."""

import collections
import itertools
import math

import numpy as np
import pytest

from tests.data.scenes.worlds import scenes
from uae_jax.data.scenes import SceneConfig, sample_scene, scene_rng
from uae_jax.data.scenes.claims import holds, main_relation
from uae_jax.data.scenes.graph import (
    BACKGROUNDS,
    COLOURS,
    FILLS,
    GAP_PX,
    POSITIONS,
    RADII_PX,
    SHAPES,
    SIDE_PX,
    SIZES,
    position_of,
    reach_px,
)
from uae_jax.data.scenes.render import BACKGROUND_RGB, COLOUR_RGB, accent_tone, background_pixels


def test_objects_keep_apart_and_inside():
    for scene in scenes(1500):
        discs = [(o.x * SIDE_PX, o.y * SIDE_PX, reach_px(o.shape, o.fill, o.radius * SIDE_PX)) for o in scene.objects]
        for x, y, reach in discs:
            assert min(x, y, SIDE_PX - x, SIDE_PX - y) >= reach
        for (a, b, r), (c, d, s) in itertools.combinations(discs, 2):
            assert math.hypot(a - c, b - d) >= r + s + GAP_PX - 1e-6


def test_every_scene_is_of_the_vocabulary_and_positions_are_unique():
    for scene in scenes(1500):
        assert scene.background in BACKGROUNDS
        assert 1 <= len(scene.objects) <= 6
        assert len({o.position for o in scene.objects}) == len(scene.objects)
        for o in scene.objects:
            assert o.shape in SHAPES and o.colour in COLOURS and o.size in SIZES and o.fill in FILLS
            low, high = RADII_PX[o.size]
            assert low <= o.radius * SIDE_PX <= high


def test_every_pair_stands_clearly_in_its_main_relation():
    # Centres are 2 * 5 * 0.95 px and a gap of 3 px apart at least, so one axis has 12.5 / sqrt(2) = 8.8 px: 0.138.
    for scene in scenes(500):
        for a, b in itertools.permutations(scene.objects, 2):
            kind = main_relation(a, b)
            assert holds(kind, a, b) and not holds(kind, b, a)
            assert max(abs(a.x - b.x), abs(a.y - b.y)) > 0.138


def test_seed_and_index_alone_decide():
    forwards = [sample_scene((3, i)) for i in range(20)]
    backwards = [sample_scene(scene_rng(3, i)) for i in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [sample_scene((4, i)) for i in range(20)]
    assert len({scene.objects for scene in forwards}) == 20


def test_weights_are_followed():
    only_one = SceneConfig(counts=(1, 0, 0, 0, 0, 0), sizes=(0, 0, 1), fills=(0, 1, 0, 0), two_tone=0.0)
    for i in range(200):
        scene = sample_scene((0, i), only_one)
        assert [(o.size, o.fill) for o in scene.objects] == [("large", "striped")]
        assert scene.background in BACKGROUND_RGB
    counts = collections.Counter(len(scene.objects) for scene in scenes(1500))
    for number, weight in enumerate(SceneConfig().counts, start=1):
        # 4 standard deviations of a share of 1500 draws
        assert counts[number] / 1500 == pytest.approx(weight, abs=4 * math.sqrt(weight * (1 - weight) / 1500))


def test_repeats_are_as_frequent_as_asked_for():
    pairs = SceneConfig(counts=(0, 1, 0, 0, 0, 0), repeat=0.5, twin=1.0)
    drawn = [sample_scene((1, i), pairs).objects for i in range(1000)]
    same = np.mean([(a.shape, a.colour) == (b.shape, b.colour) for a, b in drawn])
    assert same == pytest.approx(0.5 + 0.5 / 72, abs=0.06)  # by chance, too: 8 shapes, 9 colours; 4 deviations
    looks_twice = [(a, b) for a, b in drawn if (a.shape, a.colour) == (b.shape, b.colour)]
    assert np.mean([a.fill == b.fill for a, b in looks_twice]) > 0.95  # twins, but for the few by chance
    assert not any(
        (a.shape, a.colour) == (b.shape, b.colour) and a.fill == b.fill and a.size == b.size
        for a, b in (
            sample_scene((2, i), SceneConfig(counts=(0, 1, 0, 0, 0, 0), repeat=0.0)).objects for i in range(40)
        )
    )


def test_all_positions_and_sizes_occur_often():
    objects = [o for scene in scenes(1500) for o in scene.objects]
    positions, sizes = collections.Counter(o.position for o in objects), collections.Counter(o.size for o in objects)
    assert min(positions[p] for p in POSITIONS) > len(objects) / 20
    assert sizes["large"] > len(objects) / 10 and sizes["small"] > len(objects) / 4


@pytest.mark.parametrize(
    "wrong", [{"counts": (1, 1)}, {"counts": (0,) * 6}, {"sizes": (1, -1, 1)}, {"repeat": 1.5}, {"two_tone": -0.1}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*wanted"):
        SceneConfig(**wrong)


def test_points_have_the_position_they_lie_in():
    assert [position_of(x, 0.1) for x in (0.0, 0.34, 0.99)] == ["top left", "top", "top right"]
    assert position_of(0.5, 0.5) == "center"
    assert position_of(1.0, 1.0) == "bottom right" and position_of(-0.1, 0.5) == "left"


def test_colours_stand_out_from_every_background_and_from_each_other():
    # The detector tells parts from the background at 65, and colours by the nearest: half of 85 leaves room for tints.
    for a, b in itertools.combinations(COLOUR_RGB.values(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 85
    for background in BACKGROUNDS:
        pixels = background_pixels(background).reshape(-1, 3)
        for tone in [*COLOUR_RGB.values(), accent_tone(background)]:
            assert np.linalg.norm(pixels - np.array(tone), axis=1).min() > 90, (background, tone)
