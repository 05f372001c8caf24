"""Ctrl-C as the handler sees it, without processes."""

import os
import signal
import threading
from contextlib import suppress

import pytest

from gpt_parallel.base import signals
from gpt_parallel.base.signals import (
    IGNORE_S,
    ignore_interrupts_until_exit,
    install_interrupt_handler,
    restore_interrupt_handlers,
    uninterrupted,
)

DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


@pytest.fixture(autouse=True)
def python_handles_signals():
    before = {number: signal.signal(number, handler) for number, handler in DEFAULTS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def clock(monkeypatch):
    """clock[0]: the time."""
    now = [1000.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    return now


def test_the_first_counts_and_those_soon_after_it_do_not(clock):
    install_interrupt_handler()
    with pytest.raises(KeyboardInterrupt):
        press()
    clock[0] += IGNORE_S - 1
    press()
    clock[0] += 1
    with pytest.raises(KeyboardInterrupt):
        press()
    press()

    install_interrupt_handler()
    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_process_that_is_ending_is_let_end(clock):
    install_interrupt_handler()
    with suppress(KeyboardInterrupt):
        press()

    ignore_interrupts_until_exit()
    clock[0] += IGNORE_S - 1
    press()
    clock[0] += 1
    with pytest.raises(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_or_terminal_s_end_is_as_ctrl_c(number):
    install_interrupt_handler()

    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    signal.raise_signal(number)
    press()


def test_python_s_own_ways_come_back(clock):
    install_interrupt_handler()
    restore_interrupt_handlers()

    assert {number: signal.getsignal(number) for number in DEFAULTS} == DEFAULTS


def test_an_interrupted_process_goes_on_ignoring(clock):
    install_interrupt_handler()
    with suppress(KeyboardInterrupt):
        press()

    restore_interrupt_handlers()
    press()
    clock[0] += IGNORE_S
    with pytest.raises(KeyboardInterrupt):
        press()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_what_others_do_with_it_stays(handler):
    signal.signal(signal.SIGINT, handler)

    install_interrupt_handler()
    press()
    restore_interrupt_handlers()

    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("with_a_thread", [False, True])
def test_a_signal_waits_for_the_end_of_what_must_not_be_interrupted(with_a_thread):
    """Whichever thread the kernel gives it to: libraries such as numpy's have theirs."""
    over, steps = threading.Event(), []
    thread = threading.Thread(target=over.wait)
    if with_a_thread:
        thread.start()

    def work():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            steps.extend(step for step in range(1000))  # so many chances to raise
        steps.append("after")

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        over.set()
        if with_a_thread:
            thread.join()

    assert steps == list(range(1000))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_time_limit_waits_too_and_then_does_what_it_would_have_done():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGALRM)
            assert rung == []
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
