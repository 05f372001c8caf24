"""Ctrl-C as the handler sees it, without processes."""

import signal

import pytest

from gpt_parallel import interrupts
from gpt_parallel.interrupts import DEAF_S, heed_one_interrupt, one_interrupt


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_counts_and_those_soon_after_it_do_not(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])

    with one_interrupt():
        with pytest.raises(KeyboardInterrupt):
            press()
        now[0] += DEAF_S - 1
        press()
        now[0] += 1
        with pytest.raises(KeyboardInterrupt):
            press()
        press()

        heed_one_interrupt()
        with pytest.raises(KeyboardInterrupt):
            press()

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None])
def test_what_others_do_with_it_stays(handler):
    signal.signal(signal.SIGINT, handler)

    with one_interrupt():
        press()
        assert signal.getsignal(signal.SIGINT) is handler

    assert signal.getsignal(signal.SIGINT) is handler
