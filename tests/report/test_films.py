"""Pictures of all evaluations, none twice, within a budget of bytes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.report.workdirs import Page, noise, write_run
from uae_jax.data.images import ImageError
from uae_jax.html import encoded
from uae_jax.report import films
from uae_jax.report.runs import read_runs


def film(folder, steps, frames=12):
    (run,) = read_runs(write_run(folder / "run", [], pictures={"loop": steps}))
    return films.film("loop", run.pictures["loop"], frames, 100_000)


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_steps_are_spread_with_both_ends():
    assert films.spread([10, 20, 30], 12) == [10, 20, 30]
    assert films.spread(list(range(101)), 5) == [0, 25, 50, 75, 100]
    assert films.spread([1, 2, 3], 2) == [1, 3]


def test_before_after_and_what_lies_between(tmp_path):
    source = film(tmp_path, [100, 200, 300, 1000])
    page = Page(source)
    assert "before: step 100" in source and "after: step 1,000" in source
    assert page.text.count("step 200") == page.text.count("step 300") == 1
    assert len(page.having("details")) == 2
    # Every image is there once; its colour is its step modulo 256.
    steps = [int(attrs["data-step"]) for attrs in page.having("img")]
    assert sorted(steps) == [100, 200, 300, 1000]
    for step, uri in zip(steps, page.images, strict=True):
        assert np.asarray(opened(uri))[0, 0, 0] == step % 256


def test_few_evaluations(tmp_path):
    one = film(tmp_path / "one", [500])
    assert "before" not in one and "step 500" in one and len(Page(one).images) == 1
    two = film(tmp_path / "two", [500, 600])
    assert "<details>" not in two and len(Page(two).images) == 2


def test_many_evaluations_are_thinned(tmp_path):
    source = film(tmp_path, range(10, 310, 10))
    assert len(Page(source).images) == 12 and "12 of 30 evaluations" in source
    assert "before: step 10<" in source and "after: step 300<" in source


def test_what_cannot_be_read_is_named(tmp_path):
    folder = write_run(tmp_path / "run", [], pictures={"loop": [1, 2, 3]})
    (folder / "pictures" / "loop" / "00000003.png").write_bytes(b"\x89PNG cut off")
    (run,) = read_runs(folder)
    source = films.film("loop", run.pictures["loop"], 12, 100_000)
    assert len(Page(source).images) == 2 and "cannot be shown" in source


def test_small_files_stay_as_they_are():
    data = encoded(Image.new("RGB", (480, 900), "teal"), "PNG")
    assert films.fitted(data, 100_000) == (data, "PNG")


def test_large_ones_are_compressed_then_reduced():
    data = encoded(noise(600, 800), "PNG")
    assert len(data) > 1_400_000
    for most in (400_000, 100_000, 20_000):
        smaller, kind = films.fitted(data, most)
        assert len(smaller) <= most and kind in ("WEBP", "JPEG")
    assert Image.open(io.BytesIO(films.fitted(data, 400_000)[0])).size == (600, 800)
    huge = encoded(Image.new("RGB", (3000, 100)), "PNG")
    assert Image.open(io.BytesIO(films.fitted(huge, 100_000)[0])).size == (1200, 40)
    with pytest.raises(ImageError):
        films.fitted(b"no image", 1000)


def test_the_allowance_keeps_reports_small(tmp_path):
    for stage in range(5):
        write_run(tmp_path / f"{stage}", [], pictures={"a": range(10), "b": range(10)})
    frames, most = films.allowance(read_runs(tmp_path))
    assert frames == 10 or frames == 12
    assert 5 * 2 * 10 * most * 4 / 3 <= 12_000_000
    few, _ = films.allowance(read_runs(tmp_path / "0"))
    assert few == 12 and films.allowance([]) == (12, 400_000)


def test_with_very_many_pictures_frames_are_left_out_first(tmp_path):
    write_run(tmp_path / "run", [], pictures={f"p{i}": [1, 2, 3, 4] for i in range(150)})
    # 9 MB / 20 kB / 150 pictures = 3 frames each.
    frames, most = films.allowance(read_runs(tmp_path))
    assert (frames, most) == (3, 20_000)
