"""What is painted is what the scene says, pixel by pixel."""

import itertools

import numpy as np
import pytest

from tests.data.scenes.worlds import item, scenes
from uae_jax.data.scenes import Scene, render
from uae_jax.data.scenes.graph import BACKGROUNDS, FILLS, SHAPES, SIDE_PX
from uae_jax.data.scenes.render import layers, split_background

RED, WHITE, DARK = (220, 35, 40), (245, 245, 245), (35, 35, 40)
WHOLE = slice(0, SIDE_PX)


def painted(background="white", **looks):
    return render(Scene(background, (item(**looks),)))


def test_a_solid_circle_is_its_colour_inside_and_the_background_outside():
    image = painted()
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert tuple(image[32, 32]) == RED and tuple(image[0, 0]) == WHITE
    # Radius 8.9 * 0.95 = 8.455 px round (32, 32): pixel centres at 0.5 ... 8.5, the last one half covered at 23.5.
    assert tuple(image[32, 24]) == RED and tuple(image[32, 22]) == WHITE
    half = image[32, 23]
    assert all(min(a, b) < c < max(a, b) for a, b, c in zip(RED, WHITE, half, strict=True))


def test_the_area_of_a_circle_is_that_of_a_circle():
    cover, accent = layers("circle", "solid", 0.5, 0.5, 10 / 64, WHOLE, WHOLE)
    assert accent is None
    assert cover.sum() == pytest.approx(np.pi * 9.5**2, rel=2e-3)


def test_the_area_of_a_square_is_that_of_a_square():
    cover, _ = layers("square", "solid", 0.51, 0.49, 10 / 64, WHOLE, WHOLE)
    assert cover.sum() == pytest.approx(17.0**2, rel=5e-3)


def test_images_of_all_sizes_show_the_same():
    # Painted four times as large and averaged over 4 x 4 pixels: supersampling, against which antialiasing is measured.
    for scene in scenes(30):
        large = render(scene, 256).astype(float).reshape(64, 4, 64, 4, 3).mean((1, 3))
        error = np.abs(large - render(scene))
        assert error.mean() < 1.0 and np.quantile(error, 0.99) < 20


@pytest.mark.parametrize("shape", SHAPES)
def test_moving_an_object_moves_its_pixels(shape):
    left, right = painted(shape=shape, x=0.25, y=0.5), painted(shape=shape, x=0.75, y=0.5)
    np.testing.assert_array_equal(np.roll(left, 32, axis=1), right)


def test_shapes_point_where_they_should():
    def red(shape, rows, columns):
        return (np.abs(painted(shape=shape)[rows, columns].astype(int) - RED).sum(-1) < 30).sum()

    upper, lower, left, right, every = slice(0, 32), slice(32, 64), slice(0, 32), slice(32, 64), slice(0, 64)
    assert red("triangle", upper, every) < red("triangle", lower, every)  # the tip is on top
    assert red("heart", upper, every) > red("heart", lower, every)  # the tip is at the bottom
    assert red("moon", every, left) > red("moon", every, right)  # open to the right
    for shape in ("circle", "square", "diamond", "cross"):
        assert red(shape, upper, every) == red(shape, lower, every)
        assert red(shape, every, left) == red(shape, every, right)


def test_fills_differ_as_their_names_say():
    def column(fill, at=32):  # downwards through the centre
        return [tuple(pixel) for pixel in painted(fill=fill, shape="square", size="large")[:, at]]

    assert set(column("solid")[22:42]) == {RED}
    striped = column("striped")
    changes = sum((a == DARK) != (b == DARK) for a, b in itertools.pairwise(striped[20:45]))
    assert changes >= 4  # at least two stripes with red between them
    across = painted(fill="striped", shape="square", size="large")[:, 28:36]
    assert (across == across[:, :1]).all()  # stripes are level
    outlined = column("outlined")
    edge = outlined.index(DARK)
    assert 15 < edge < 32 and RED not in outlined[:edge] and outlined[32] == RED  # dark only on the rim
    dotted = painted(fill="dotted", shape="square", size="large")
    assert tuple(dotted[32, 32]) == RED and 0.1 < (dotted[22:42, 22:42] == DARK).all(-1).mean() < 0.4


def test_the_second_tone_is_white_on_dark_backgrounds():
    for background, tone in (
        ("black", WHITE),
        ("navy fading to black", WHITE),
        ("gray", DARK),
        ("sky over sand", DARK),
    ):
        pixels = painted(background, fill="striped", size="large").reshape(-1, 3)
        assert (pixels == tone).all(-1).sum() > 50


def test_two_tone_backgrounds():
    over, fading = render(Scene("sky over sand", ())), render(Scene("white fading to gray", ()))
    assert {tuple(p) for p in over[:32].reshape(-1, 3)} == {(165, 205, 240)}
    assert {tuple(p) for p in over[32:].reshape(-1, 3)} == {(225, 205, 150)}
    assert (np.diff(fading[:, 0, 0].astype(int)) <= 0).all()
    assert fading[0, 0, 0] >= 243 and fading[-1, 0, 0] <= 162
    assert [split_background(name)[2] for name in ("sky", "sky over sand", "sky fading to white")] == [
        False,
        False,
        True,
    ]


def test_the_same_bytes_every_time_and_no_memory_of_earlier_scenes():
    first = [render(scene) for scene in scenes(20)]
    again = [render(scene) for scene in reversed(scenes(20))][::-1]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(render(Scene(name, ())).std((1,)).max() == 0 for name in BACKGROUNDS)


def test_all_looks_of_all_shapes_can_be_told_apart_at_ten_pixels():
    # Smallest objects, radius 5.5 px. Under noise of std 4, which the detector has to bear, the best test between two
    # known images errs with probability Phi(-d / 2), d their Euclidean distance over 4: 1e-9 at d = 12.
    images = [painted(shape=s, fill=f, size="small").astype(float) for s in SHAPES for f in FILLS]
    apart = [np.linalg.norm(a - b) / 4 for i, a in enumerate(images) for b in images[:i]]
    assert min(apart) > 12
