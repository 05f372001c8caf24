"""Ctrl-C counts once, and not at all for a moment: how ranks are stopped and results are kept is not cut short."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DEAF_S = 30.0  # long enough to stop ranks and write files; who waits for longer may want out


class _OneInterrupt:
    """Raises KeyboardInterrupt, and then for a while nothing."""

    def __init__(self) -> None:
        self._heeded_at = -math.inf

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._heeded_at >= DEAF_S:
            self._heeded_at = now
            raise KeyboardInterrupt


def heed_one_interrupt() -> None:
    """From now on the next Ctrl-C raises KeyboardInterrupt, and those soon after it do nothing.

    Where somebody else handles or ignores it, that stays.
    """
    if _is_main_thread() and (_is_ours() or signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        signal.signal(signal.SIGINT, _OneInterrupt())


def heed_interrupts() -> None:
    """Python's own way again."""
    if _is_main_thread() and _is_ours():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def one_interrupt() -> Iterator[None]:
    heed_one_interrupt()
    try:
        yield
    finally:
        heed_interrupts()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_ours() -> bool:
    return isinstance(signal.getsignal(signal.SIGINT), _OneInterrupt)


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
