"""Axes have round marks, and numbers are written for people."""

import math

import pytest

from uae_jax.report.scales import number, round_step, signed, step_axis, tick_labels, value_axis


def test_round_steps():
    assert [round_step(least) for least in (1, 1.2, 2, 3, 5, 6, 0.03)] == [1, 2, 2, 5, 5, 10, pytest.approx(0.05)]


def test_a_value_axis_has_round_ends_around_the_values():
    # 0.13 to 0.87: 0.74 in at most five parts is 0.148, rounded up 0.2; so 0.0, 0.2 ... 1.0.
    axis = value_axis([0.13, math.nan, 0.87, math.inf])
    assert (axis.low, axis.high) == (0, pytest.approx(1.0))
    assert tick_labels(axis) == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert axis.part(0.25) == pytest.approx(0.25)


def test_values_on_the_marks_need_no_further_marks():
    assert tick_labels(value_axis([0, 100])) == ["0", "20", "40", "60", "80", "100"]


@pytest.mark.parametrize("values", [[3.0, 3.0], [-3.0], [0.0], [], [math.nan]])
def test_an_axis_of_one_value_or_none(values):
    axis = value_axis(values)
    assert axis.low < axis.high
    assert all(axis.low <= value <= axis.high for value in values if math.isfinite(value))
    assert value_axis([0.0, 0.0]).low == 0  # what never was anything else than 0 seldom is a negative number


def test_logarithmic_only_where_it_pays():
    assert not value_axis([1, 100], log=True).log  # two powers of ten
    assert not value_axis([0, 1000], log=True).log
    assert not value_axis([1, 1000]).log
    axis = value_axis([0.02, 90], log=True)
    assert (axis.low, axis.high) == (pytest.approx(0.01), pytest.approx(100))
    assert axis.part(1) == pytest.approx(0.5)
    assert tick_labels(axis) == ["1e\N{MINUS SIGN}2", "1e\N{MINUS SIGN}1", "1e0", "1e1", "1e2"]


def test_close_values_get_the_decimals_they_need():
    assert tick_labels(value_axis([0.99995, 1.00005]))[:2] == ["0.99994", "0.99996"]
    assert tick_labels(value_axis([0, 1e-5]))[:2] == ["0", "2e\N{MINUS SIGN}6"]


def test_steps_start_at_zero_and_end_at_the_last():
    axis = step_axis(1234)
    assert (axis.low, axis.high) == (0, 1234)
    assert tick_labels(axis) == ["0", "500", "1,000"]
    assert tick_labels(step_axis(3)) == ["0", "1", "2", "3"]
    assert step_axis(0).high == 1


def test_numbers():
    minus = "\N{MINUS SIGN}"
    written = {
        0.79194: "0.7919",
        73.838: "73.84",
        1234.56: "1,235",
        12.0: "12",
        -0.5: f"{minus}0.5000",
        0: "0",
        0.00012: f"1.2e{minus}4",
        3e8: "3e8",
        math.nan: "NaN",
        -math.inf: f"{minus}∞",
    }
    for value, text in written.items():
        assert number(value) == text


def test_changes_have_the_decimals_of_their_values():
    assert signed(0.0500001, to=0.7919) == "+0.0500"
    assert signed(-54.7, to=1234.0) == "\N{MINUS SIGN}55"
    assert signed(0.00002, to=0.7919) == "+2e\N{MINUS SIGN}5"  # 0.0000 would say that there is none
    assert signed(-0.2, to=math.nan) == "\N{MINUS SIGN}0.2000" and signed(-0.2, to=0.0) == "\N{MINUS SIGN}0.2000"
