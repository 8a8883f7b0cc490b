"""Lines lie where they should, gaps stay gaps, and no peak is lost."""

import math
import re

import pytest

from tests.report.workdirs import Page
from uae_jax.report.charts import Chart, Line, frame_of, is_restless, path, smoothed, svg, thinned, to_html

NAN = math.nan


def chart(*lines, **more):
    return Chart("Loss", [Line("", points) for points in lines], **more)


def test_a_line_lies_where_it_should():
    # 440 x 230 pixels. Across: 58 to 418 (22 on the right) for steps 0 to 100. Up: 196 (34 below) to 20 for 0 to 10.
    points = [(0, 0.0), (50, 5.0), (100, 10.0)]
    assert path(frame_of(chart(points)), points) == "M58.0,196.0L238.0,108.0L418.0,20.0"


def test_a_wide_chart_is_wider_only():
    # Across: 58 to 878.
    points = [(50, 0.0), (100, 10.0)]
    assert path(frame_of(chart(points, wide=True)), points) == "M468.0,196.0L878.0,20.0"


def test_values_that_are_no_numbers_are_gaps():
    points = [(0, 0.0), (25, NAN), (50, 5.0), (75, math.inf), (80, 10.0), (100, 10.0)]
    # A point between two gaps is a dot: a stroke of no length with round ends.
    assert path(frame_of(chart(points)), points) == "M58.0,196.0h0M238.0,108.0h0M346.0,20.0L418.0,20.0"
    drawn = to_html(chart(points))
    assert "left out: 2 readings that are no finite number" in drawn
    assert "nan" not in drawn and "inf" not in drawn.replace("finite", "")


def test_nothing_to_draw_is_no_error():
    assert path(frame_of(chart([])), []) == ""
    assert "no values" in svg(chart([(1, NAN)]))
    Page(to_html(Chart("Empty", [])))


def test_a_logarithmic_axis():
    points = [(0, 1.0), (100, 1000.0)]
    # Three powers of ten on 176 pixels: 10 lies a third up, at 196 - 58.7.
    frame = frame_of(chart(points, log=True))
    assert frame.y(10) == pytest.approx(196 - 176 / 3)
    assert frame_of(chart(points)).y(10) == pytest.approx(196 - 1.76)


def test_thinning_keeps_peaks_ends_and_gaps():
    points = [(i, float(i % 7)) for i in range(10_000)]
    points[1234] = (1234, 999.0)
    points[5555] = (5555, -999.0)
    points[7777] = (7777, NAN)
    kept = thinned(points, 300)
    assert len(kept) <= 300
    assert {1234, 5555, 7777} <= {step for step, _ in kept}
    assert kept == sorted(kept)
    assert thinned(points[:300], 300) == points[:300]


def test_running_means():
    assert smoothed([(1, 0.0), (2, 3.0), (3, 6.0), (4, 9.0)], 1) == [(1, 1.5), (2, 3.0), (3, 6.0), (4, 7.5)]
    (_, before), (_, gap), (_, after) = smoothed([(1, 1.0), (2, NAN), (3, 3.0)], 1)
    assert (before, after) == (1.0, 3.0) and math.isnan(gap)


def test_only_restless_lines_are_smoothed():
    noisy = [(i, float(i % 2)) for i in range(100)]
    schedule = [(i, float(min(i, 100 - i))) for i in range(100)]  # up and down once
    assert is_restless(noisy) and not is_restless(schedule) and not is_restless(noisy[:10])
    assert 'class="raw' in svg(chart(noisy)) and "running mean" in to_html(chart(noisy))
    assert 'class="raw' not in svg(chart(schedule)) and "running mean" not in to_html(chart(schedule))


def test_marks_tell_their_values():
    line = Line("evaluation", [(100, 0.5), (200, NAN), (300, 1.0)], marks=True, origin=50)
    drawn = svg(Chart("Score", [line]))
    assert drawn.count("<circle") == 2
    assert "<title>evaluation, step 50: 0.5000</title>" in drawn  # counted from where its stage began


def test_stages_are_marked_where_they_begin():
    drawn = svg(chart([(0, 0.0), (100, 1.0)], spans=[(0, "first"), (50, "a very long name indeed, it is"), (99, "c")]))
    # Step 50 lies at 238, 99 at 414.4: 8 pixels less, that is room for 28 letters of 6. The last has none.
    assert re.findall(r'class="span" d="M([\d.]+),', drawn) == ["58.0", "238.0", "414.4"]
    assert ">first<" in drawn and ">a very long name indeed, it…<" in drawn and ">c<" not in drawn


def test_text_is_escaped():
    evil = "<script>alert(1)</script>\"'&"
    line = Line(evil, [(1, 1.0)], marks=True)
    page = Page(to_html(Chart(evil, [line], evil, evil, spans=[(0, evil)])))
    assert not page.having("script")
    assert page.text.count(evil) >= 4
    assert page.having("svg", role="img")[0]["aria-label"].startswith(evil)
