"""Ctrl-C counts once, and not at all for a moment: how ranks are stopped and results are kept is not cut short."""

import atexit
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

DEAF_S = 30.0  # long enough to stop ranks and write files; who waits for longer may want out


class _OneInterrupt:
    """Raises KeyboardInterrupt, and then for a while nothing."""

    def __init__(self) -> None:
        self._heeded_at = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.is_deaf:
            self._heeded_at = time.monotonic()
            atexit.unregister(_ignore)
            atexit.register(_ignore)  # the last to register is the first to be called
            raise KeyboardInterrupt

    @property
    def is_deaf(self) -> bool:
        return time.monotonic() - self._heeded_at < DEAF_S


def _ignore() -> None:
    """Python takes its handlers away as it ends, and the signal's own way would spoil the exit code."""
    for number in _DEFAULTS:
        if _is_ours(number):
            signal.signal(number, signal.SIG_IGN)


# What says "stop": Ctrl-C; a scheduler's time limit, a CI system's cancellation; a closed terminal.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def heed_one_interrupt() -> None:
    """From now on the next Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt, and those soon after it do nothing.

    Where somebody else handles or ignores one, that stays.
    """
    if _is_main_thread():
        handler = _OneInterrupt()
        for number, default in _DEFAULTS.items():
            if _is_ours(number) or signal.getsignal(number) is default:
                signal.signal(number, handler)


def heed_interrupts() -> None:
    """Python's own ways again, but not soon after an interrupt: the process is ending, and is let end in peace."""
    if _is_main_thread():
        for number, default in _DEFAULTS.items():
            handler = signal.getsignal(number)
            if isinstance(handler, _OneInterrupt) and not handler.is_deaf:
                signal.signal(number, default)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_ours(number: int) -> bool:
    return isinstance(signal.getsignal(number), _OneInterrupt)


_DELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals that would raise or end (Ctrl-C, a test's time limit) take effect when the block is left.

    By handlers and not by a mask: a mask is one thread's, and the kernel would give the signal to another.
    """
    if not _is_main_thread():
        yield  # Python raises in the main thread only
        return
    held: list[int] = []
    # A handler that is not Python's is left alone: it does not raise.
    before = {number: handler for number in _DELAYED if (handler := signal.getsignal(number)) is not None}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in dict.fromkeys(held):
            signal.raise_signal(each)
