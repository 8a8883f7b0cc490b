"""Signals become a flag, twice is once too often, and the handlers are given back."""

import os
import signal
import threading

import pytest

from uae_jax.training.preemption import Preemption


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_nothing_else(number):
    with Preemption() as preemption:
        assert not preemption.requested
        assert not preemption.reached(1)
        os.kill(os.getpid(), number)
        assert preemption.requested
        assert preemption.reached(2)


def test_a_second_interrupt_is_not_held_back():
    with Preemption() as preemption:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first one, however often it was asked otherwise
        assert preemption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back_even_after_an_error():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Preemption():
        assert signal.getsignal(signal.SIGTERM) != before[0]
        _ = 1 / 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_in_another_thread_nothing_is_installed():
    seen = []

    def run():
        with Preemption() as preemption:
            seen.append((signal.getsignal(signal.SIGTERM), preemption.requested))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
