"""Grids: every image and every word is there, and nothing lies on anything else."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from uae_jax.stages.base import Picture
from uae_jax.training import pictures
from uae_jax.training.pictures import render_grid, save_pictures


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def find(grid, image):
    """Top left corners at which an image stands in a grid."""
    height, width, _ = image.shape
    rows, columns = np.nonzero((grid[: 1 - height or None, : 1 - width or None] == image[0, 0]).all(-1))
    corners = [(int(r), int(c)) for r, c in zip(rows, columns, strict=True)]
    return [(r, c) for r, c in corners if np.array_equal(grid[r : r + height, c : c + width], image)]


def enlarged(image, factor):
    return image.repeat(factor, 0).repeat(factor, 1)


def test_small_images_are_enlarged_pixel_by_pixel():
    # 64 pixels become 128: every pixel a square of 2. 50 become 150, as twice 50 would be less than 128.
    images = [[noise(64, 64, 1), noise(50, 60, 2)], [noise(64, 64, 3), noise(50, 60, 4)]]
    grid = render_grid(Picture("x", ["left", "right"], images))
    assert grid.dtype == np.uint8 and grid.shape[2] == 3
    places = [
        [find(grid, enlarged(image, factor)) for image, factor in zip(row, (2, 3), strict=True)] for row in images
    ]
    assert all(len(place) == 1 for row in places for place in row)
    ((a, b), (c, d)) = [[place[0] for place in row] for row in places]
    assert a[0] == b[0] and c[0] == d[0] and a[1] == c[1] and b[1] == d[1]
    assert b[1] >= a[1] + 128 and c[0] >= a[0] + 150


def test_large_images_are_reduced_and_thin_ones_fit():
    grid = render_grid(Picture("x", ["one"], [[noise(1024, 2048)], [noise(16, 160)]]))
    assert grid.shape[1] == 512 + 2 * 20 and grid.shape[0] < 600


def test_texts_lie_below_their_row_and_are_never_cut():
    images = [[noise(64, 64, seed)] for seed in (1, 2)]
    words = "a caption of very many words " * 40
    short = render_grid(Picture("x", ["image"], images, ["few words", ""]))
    long = render_grid(Picture("x", ["image"], images, [words, ""]))
    (first, _), (second, _) = [find(long, enlarged(row[0], 2))[0] for row in images]
    between = long[first + 128 + 2 : second - 2]
    assert short.shape[1] == long.shape[1] and long.shape[0] > short.shape[0]
    assert (between < 100).any()  # ink
    assert (long[:, -20:] == 255).all() and (long[:, :19] == 255).all() and (long[-18:] == 255).all()  # margins


@pytest.mark.parametrize("text", ["a caption of very many words " * 40, "unbroken" * 100, "one\n\ntwo", "", " "])
def test_wrapping_keeps_every_letter(text):
    font = ImageFont.load_default(15)
    lines = pictures._wrapped(text, font, 300)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(font.getlength(line) <= 300 for line in lines)


def test_line_breaks_of_texts_stay():
    font = ImageFont.load_default(15)
    assert pictures._wrapped("one\n\ntwo", font, 300) == ["one", "", "two"]


def test_pictures_are_written_under_their_names(tmp_path):
    drawn = [Picture("paintings", ["x"], [[noise(64, 64)]]), Picture("captions", ["x"], [[noise(64, 64)]], ["text"])]
    shown = save_pictures(tmp_path, 120, drawn)
    assert list(shown) == ["paintings", "captions"]
    for name, grid in shown.items():
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "pictures" / name / "00000120.png")), grid)
    save_pictures(tmp_path, 120, drawn)  # a resumed run draws again
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["00000120.png"] * 2
    assert save_pictures(tmp_path, 130, []) == {}


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_names_are_plain(tmp_path, name):
    with pytest.raises(ValueError, match="picture name"):
        save_pictures(tmp_path, 1, [Picture(name, ["x"], [[noise(64, 64)]])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (Picture("x", [], []), "no columns or no rows"),
        (Picture("x", ["a"], [[noise(9, 9), noise(9, 9)]]), "row 0 has 2 images for 1 columns"),
        (Picture("x", ["a"], [[noise(9, 9)]], ["a", "b"]), "2 texts for 1 rows"),
        (Picture("x", ["a"], [[np.zeros((9, 9, 3))]]), r"row 0: float64\[9, 9, 3\], wanted uint8 \[H, W, 3\]"),
        (Picture("x", ["a"], [[np.zeros((9, 9), np.uint8)]]), r"row 0: uint8\[9, 9\], wanted uint8"),
    ],
)
def test_what_is_no_picture_is_refused(picture, message):
    with pytest.raises(ValueError, match=message):
        render_grid(picture)
