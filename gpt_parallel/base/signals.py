"""Interrupts: the first signal raises KeyboardInterrupt; later ones are ignored while ranks stop and files are kept."""

import atexit
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IGNORE_S = 30.0  # enough to stop ranks and write files

# Sent by Ctrl-C; by a scheduler's time limit or a CI system's cancellation; by a closed terminal.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class _FirstInterrupt:
    """A signal handler that raises KeyboardInterrupt and then ignores signals for IGNORE_S seconds."""

    def __init__(self) -> None:
        self.ignores_until = -math.inf

    @property
    def is_ignoring(self) -> bool:
        return time.monotonic() < self.ignores_until

    def ignore(self) -> None:
        self.ignores_until = time.monotonic() + IGNORE_S

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.is_ignoring:
            self.ignore()
            raise KeyboardInterrupt


def install_interrupt_handler() -> None:
    """Make the next Ctrl-C, SIGTERM or SIGHUP raise KeyboardInterrupt, and ignore those that follow it closely.

    A signal that already has another handler, or is ignored, is left as it is.
    """
    if _is_main_thread():
        handler = _FirstInterrupt()
        for number, default in _DEFAULTS.items():
            if _ours(number) or signal.getsignal(number) is default:
                signal.signal(number, handler)


def ignore_interrupts_until_exit() -> None:
    """Ignore signals while results are saved and the process ends, for IGNORE_S seconds at most."""
    if _is_main_thread():
        for handler in filter(None, map(_ours, _DEFAULTS)):
            handler.ignore()
        atexit.unregister(_ignore_while_ending)
        atexit.register(_ignore_while_ending)  # the function registered last is called first


def _ignore_while_ending() -> None:
    """Ignore signals once Python removes its handlers at exit: their default action would change the exit code."""
    for number in _DEFAULTS:
        if (handler := _ours(number)) and handler.is_ignoring:
            signal.signal(number, signal.SIG_IGN)


def restore_interrupt_handlers() -> None:
    """Restore Python's own handlers, unless the process has just been interrupted."""
    if _is_main_thread():
        for number, default in _DEFAULTS.items():
            if (handler := _ours(number)) and not handler.is_ignoring:
                signal.signal(number, default)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _ours(number: int) -> _FirstInterrupt | None:
    handler = signal.getsignal(number)
    return handler if isinstance(handler, _FirstInterrupt) else None


_DELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals that would raise or end the process (Ctrl-C, a test's time limit) until the block is left.

    This uses handlers, not a mask: a mask covers one thread, and the kernel would deliver the signal to another.
    """
    if not _is_main_thread():
        yield  # handlers run in the main thread only
        return
    held: list[int] = []
    # None is a handler that is not Python's; it stays, because it does not raise.
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
