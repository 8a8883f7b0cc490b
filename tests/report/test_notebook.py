"""Images and runs as a notebook shows them."""

import io

import pytest
from PIL import Image

from tests.report.workdirs import write_run
from uae_jax.report import notebook
from uae_jax.report.charts import Chart, Line

pytest.importorskip("matplotlib")


class Place:
    """What IPython's display handle is asked to do."""

    def __init__(self):
        self.shown = []

    def update(self, image):
        self.shown.append(image.data)


@pytest.fixture
def places(monkeypatch):
    display = pytest.importorskip("IPython").display
    made = []
    monkeypatch.setattr(display, "display", lambda *shown, **kwargs: made.append(shown or Place()) or made[-1])
    return made


def size(png):
    return Image.open(io.BytesIO(png)).size


def test_charts_lie_in_two_columns_and_gaps_and_empty_lines_do_not_stop_them():
    lines = [Line("loss", [(1, 2.0), (2, float("nan")), (3, 1.0)]), Line("", [], "c1 d1", marks=True)]
    chart = Chart("Loss", lines, spans=[(0, "1_pretrain")])
    one, three = size(notebook.to_png([chart])), size(notebook.to_png([chart] * 3))
    assert three == (2 * one[0], 2 * one[1]) or abs(three[0] - 2 * one[0]) + abs(three[1] - 2 * one[1]) <= 2


def test_a_folder_without_a_run_shows_nothing(tmp_path):
    assert notebook.charts_png(tmp_path / "none") is None and notebook.newest_picture(tmp_path / "none") is None


def test_the_newest_picture_is_that_of_the_last_stage_at_its_last_step(tmp_path):
    for number, name in enumerate(("1_a", "2_b"), start=1):
        lines = [(step, {"loss": 1.0 / step, "evaluation/unified": 0.1 * step}) for step in (5, 10)]
        write_run(tmp_path / name, lines, pictures={"loop": (5, 10 * number)})
    assert notebook.newest_picture(tmp_path) == (tmp_path / "2_b/pictures/loop/00000020.png").read_bytes()
    assert notebook.charts_png(tmp_path).startswith(b"\x89PNG")


def test_a_watched_run_is_shown_as_it_ended_even_if_it_failed(tmp_path, places):
    with pytest.raises(RuntimeError, match="out of memory"), notebook.watch(tmp_path / "run", every_s=1000):
        write_run(tmp_path / "run", [(1, {"loss": 2.0}), (2, {"loss": 1.0})], pictures={"loop": (2,)})
        raise RuntimeError("out of memory")
    assert [len(place.shown) for place in places] == [1, 1]


def test_a_watched_run_is_drawn_again_and_again(tmp_path, places):
    write_run(tmp_path / "run", [(1, {"loss": 2.0}), (2, {"loss": 1.0})])
    with notebook.watch(tmp_path / "run", every_s=0.01):
        for _ in range(1000):
            if len(places[0].shown) >= 2:
                break
            notebook.threading.Event().wait(0.01)
    assert len(places[0].shown) >= 3 and not places[1].shown  # there are no pictures


def test_images_are_shown_below_their_headings(places):
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    notebook.show({"image": images, "painting": images[::-1]}, ["one", "two"])
    ((shown,),) = places
    assert set(shown._repr_mimebundle_()[0]) == {"image/png"}  # once
    grid = Image.open(io.BytesIO(shown.data))
    assert grid.getpixel((25, 50)) == (255, 0, 0)
    with pytest.raises(ValueError):
        notebook.show({"image": images, "painting": images[:1]})
