"""How far a run is: right on a terminal, in a file, and when nobody wants to know."""

import io
import math

import pytest

from uae_jax.training.progress import Progress, format_rate, format_time


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True

    def last(self):
        """The bar as it stands."""
        return self.getvalue().replace("\n", "\r").rstrip("\r ").split("\r")[-1].strip()


def run(progress, clock, first, last, seconds):
    for number in range(first, last + 1):
        progress.step(number)
        clock.now += seconds
        progress.settled()


def test_the_rate_counts_neither_compilation_nor_earlier_runs():
    clock, file = Clock(), io.StringIO()
    progress = Progress("toy", 1000, 500, file=file, clock=clock)
    assert math.isnan(progress.rate())
    clock.now += 60  # compiling
    progress.step(501)
    assert math.isnan(progress.rate())
    for number in range(502, 521):
        progress.step(number)
    assert math.isnan(progress.rate())  # handed to the device at once, which has only begun
    clock.now += 10
    progress.settled()
    # 20 steps in 10 s. With the compilation it would be 0.3, with the earlier run 7.4.
    assert progress.rate() == pytest.approx(2.0)
    assert progress.time_left() == pytest.approx(480 / 2)
    clock.now += 3
    progress.step(521)
    assert progress.rate() == pytest.approx(2.0)
    assert progress.time_left() == pytest.approx(480 / 2 - 3)
    assert "toy: first step after 60.0 s" in file.getvalue()


def test_lines_where_there_is_no_terminal():
    clock, file = Clock(), io.StringIO()
    with Progress("toy", 100, file=file, clock=clock) as progress:
        run(progress, clock, 1, 1, 1.0)
        progress.metrics({"loss": 0.51234, "accuracy": 0.9, "grad_norm": 3.0, "learning_rate": 1e-3})
        run(progress, clock, 2, 100, 1.0)
    printed = file.getvalue().splitlines()
    # Every tenth of the steps, which comes before 30 s are over; the last once.
    assert [line.split()[2] for line in printed[1:]] == [f"{n}/100" for n in range(10, 101, 10)]
    assert printed[1] == "toy: step 10/100 (10%)  1 it/s  ETA 1:31  loss 0.5123  accuracy 0.9"
    assert "\r" not in file.getvalue()


def test_slow_runs_say_something_every_half_minute():
    clock, file = Clock(), io.StringIO()
    progress = Progress("toy", 10_000, file=file, clock=clock)
    run(progress, clock, 1, 12, 10.0)
    assert [line.split()[2] for line in file.getvalue().splitlines()[1:]] == ["4/10000", "7/10000", "10/10000"]


def test_a_bar_on_a_terminal():
    clock, file = Clock(), Terminal()
    progress = Progress("toy", 200, 100, file=file, clock=clock)
    run(progress, clock, 101, 150, 0.25)
    progress.metrics({"a": 1.0, "loss": 0.5, "b": 2.0, "c": 3.0})
    shown = file.last()
    assert shown.startswith("toy  75%|") and "150/200" in shown
    assert shown.endswith("4 it/s  ETA 0:12  loss 0.5  a 1  b 2")
    progress.note("step 150: saved")
    assert "step 150: saved\n" in file.getvalue() and file.last().endswith("b 2")  # the bar stands below it
    progress.close()


def test_chosen_metrics():
    clock, file = Clock(), Terminal()
    progress = Progress("toy", 10, file=file, clock=clock, shown=("psnr", "loss", "absent"))
    progress.metrics({"loss": 1.0, "kl": 2.0, "psnr": 31.25})
    assert file.last().endswith("psnr 31.25  loss 1")
    progress.close()


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_quiet_prints_notes_only(file):
    with Progress("toy", 20, quiet=True, file=file) as progress:
        for number in range(1, 21):
            progress.step(number)
        progress.metrics({"loss": 1.0})
        progress.note("done")
    assert file.getvalue() == "done\n"


def test_nothing_to_do_is_no_error():
    file = io.StringIO()
    Progress("toy", 0, file=file).close()
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (754, "12:34"), (5025, "1:23:45"), (90061, "25:01:01"), (math.nan, "?")]
)
def test_times(seconds, text):
    assert format_time(seconds) == text


@pytest.mark.parametrize(("rate", "text"), [(12.345, "12.3 it/s"), (0.4, "2.5 s/it"), (math.nan, "? it/s")])
def test_rates(rate, text):
    assert format_rate(rate) == text
