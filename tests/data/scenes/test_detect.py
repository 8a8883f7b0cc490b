"""The detector: exact on clean images, and hardly less so on blurred and noisy ones."""

import numpy as np
import pytest
from scipy import ndimage

from tests.data.scenes.worlds import item, scenes
from uae_jax.data.scenes import Scene, detect, render, score_painting
from uae_jax.data.scenes.graph import BACKGROUNDS, COLOURS, FILLS, SHAPES, SIZES
from uae_jax.data.scenes.render import accent_tone, background_pixels, offsets, outline, pattern, tone


def blurred(image):
    return np.rint(ndimage.uniform_filter(image.astype(np.float32), (3, 3, 1), mode="nearest")).astype(np.uint8)


def noisy(image, seed):
    noise = np.random.default_rng(seed).normal(0, 4, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def accuracy(images, targets):
    return np.mean([score_painting(image, scene).accuracy for image, scene in zip(images, targets, strict=True)])


def test_clean_images_are_read_without_error():
    targets = scenes(100, seed=21)
    assert accuracy([render(scene) for scene in targets], targets) == 1


@pytest.mark.exhaustive
def test_a_thousand_clean_images_are_read_without_error():
    targets = scenes(1000, seed=22)
    assert accuracy([render(scene) for scene in targets], targets) == 1


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["noise", "blur", "both"])
def test_mild_harm_costs_less_than_three_in_a_hundred(harm):
    targets = scenes(200, seed=23)
    images = [render(scene) for scene in targets]
    if harm != "noise":
        images = [blurred(image) for image in images]
    if harm != "blur":
        images = [noisy(image, i) for i, image in enumerate(images)]
    assert accuracy(images, targets) >= 0.97


def test_every_look_is_told_from_every_other():
    for i, shape in enumerate(SHAPES):
        for j, fill in enumerate(FILLS):
            for k, size in enumerate(SIZES):
                colour = COLOURS[(i + 3 * j + 2 * k) % len(COLOURS)]
                background = BACKGROUNDS[(5 * i + j + 3 * k) % len(BACKGROUNDS)]
                wanted = item(shape, colour, size, fill, x=0.47, y=0.52)
                found = detect(render(Scene(background, (wanted,))))
                assert found.background == background
                (got,) = found.objects
                assert (got.shape, got.colour, got.size, got.fill) == (shape, colour, size, fill)
                assert abs(got.x - wanted.x) < 0.01 and abs(got.y - wanted.y) < 0.01
                assert got.radius == pytest.approx(wanted.radius, rel=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_stripes_and_dots_may_begin_anywhere(shape):
    """Who paints "dotted" need not know where scenes put their dots; what is seen is dotted all the same."""
    chance = np.random.default_rng(SHAPES.index(shape))
    for fill in ("striped", "dotted"):
        for size, radius in (("medium", 9.0), ("large", 13.0)):
            for colour, background in (("red", "white"), ("cyan", "navy"), ("pink", "sky")):
                lattice = (*chance.uniform(0, 1, 2), chance.uniform(0.9, 1.1))
                pixels = background_pixels(background).copy()
                across, down = offsets(0.47, 0.52, slice(0, 64), slice(0, 64), 64)
                distance = outline(shape, across, down, radius)
                cover, accent = pattern(fill, distance, across, down, radius, 1.0, lattice)
                paint = tone(colour) + accent[..., None] * (accent_tone(background) - tone(colour))
                pixels += cover[..., None] * (paint - pixels)
                (got,) = detect(blurred(pixels)).objects
                assert (got.shape, got.colour, got.fill, got.size) == (shape, colour, fill, size), lattice


def test_a_background_alone_holds_nothing():
    for name in BACKGROUNDS:
        assert detect(noisy(render(Scene(name, ())), 0)) == Scene(name, ())


def test_tints_do_not_matter():
    # A painter whose colours are a little off, differently in each channel.
    for scene in scenes(25, seed=24):
        tinted = np.clip(render(scene) + np.array([9, -8, 7]), 0, 255).astype(np.uint8)
        assert score_painting(tinted, scene).accuracy == 1


def test_larger_images_are_read_as_well():
    for scene in scenes(15, seed=25):
        assert score_painting(render(scene, 128), scene).accuracy == 1


def test_whatever_is_painted_something_is_read():
    chance = np.random.default_rng(0)
    for image in (
        chance.integers(0, 256, (64, 64, 3), dtype=np.uint8),
        np.zeros((64, 64, 3), np.uint8),
        np.kron(chance.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8),
    ):
        assert detect(image).background in BACKGROUNDS


@pytest.mark.parametrize(
    "image", [np.zeros((64, 64, 3)), np.zeros((64, 64), np.uint8), np.zeros((64, 32, 3), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"wanted uint8 \[S, S, 3\]"):
        detect(image)
