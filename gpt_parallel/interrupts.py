"""Ctrl-C counts once: those that follow must not cut short how ranks are stopped and results are kept."""

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
