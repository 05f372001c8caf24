"""Ctrl-C counts once, and not at all for a moment: how ranks are stopped and results are kept is not cut short."""

import atexit
import math
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

IGNORE_S = 30.0  # long enough to stop ranks and write files; who waits for longer may want out
_PARTING_S = 5.0  # and to end the process, once all that is done

# What says "stop": Ctrl-C; a scheduler's time limit, a CI system's cancellation; a closed terminal.
_DEFAULTS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


class _Token:
    """Lives as long as the exception that has it."""


class _OneInterrupt:
    """Raises KeyboardInterrupt, and then nothing while that is on its way or `ignore_interrupts_until_exit` holds.

    An exception can be lost, in a library's C code for one, or where an object is deleted. Then the next signal counts.
    """

    def __init__(self) -> None:
        self._token: weakref.ref[_Token] | None = None
        self._raised_at = self._deaf_until = -math.inf
        self._is_released = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.is_ignoring:
            return
        if self._is_released:
            signal.signal(number, _DEFAULTS[number])
            signal.raise_signal(number)
            return
        self._raised_at = time.monotonic()
        raise self._interrupt()  # held by nothing here, or it would not be seen to go

    def _interrupt(self) -> KeyboardInterrupt:
        interrupt, token = KeyboardInterrupt(), _Token()
        vars(interrupt)["token"], self._token = token, weakref.ref(token)
        return interrupt

    @property
    def is_ignoring(self) -> bool:
        now = time.monotonic()
        is_on_its_way = self._token is not None and self._token() is not None and now < self._raised_at + IGNORE_S
        return is_on_its_way or now < self._deaf_until

    def ignore(self) -> None:
        self._deaf_until = time.monotonic() + IGNORE_S

    def release(self) -> None:
        """From now on Python's own ways, but for a while not even those if it is deaf: the process is ending."""
        if self.is_ignoring:
            self._deaf_until = time.monotonic() + _PARTING_S
        self._token, self._is_released = None, True


def install_interrupt_handler() -> None:
    """From now on the next Ctrl-C, SIGTERM or SIGHUP raises KeyboardInterrupt, and those soon after it do nothing.

    Where somebody else handles or ignores one, that stays.
    """
    if _is_main_thread():
        handler = _OneInterrupt()
        for number, default in _DEFAULTS.items():
            if _ours(number) or signal.getsignal(number) is default:
                signal.signal(number, handler)


def ignore_interrupts_until_exit() -> None:
    """What was interrupted is told, kept and cleared away now, and then the process ends: signals do nothing."""
    if _is_main_thread():
        for handler in filter(None, map(_ours, _DEFAULTS)):
            handler.ignore()
        atexit.unregister(_ignore)
        atexit.register(_ignore)  # the last to register is the first to be called


def _ignore() -> None:
    """Python takes its handlers away as it ends, and the signal's own way would spoil the exit code."""
    for number in _DEFAULTS:
        if (handler := _ours(number)) and handler.is_ignoring:
            signal.signal(number, signal.SIG_IGN)


def restore_interrupt_handlers() -> None:
    """Python's own ways again."""
    if _is_main_thread():
        for number, default in _DEFAULTS.items():
            if handler := _ours(number):
                handler.release()
                if not handler.is_ignoring:
                    signal.signal(number, default)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _ours(number: int) -> _OneInterrupt | None:
    handler = signal.getsignal(number)
    return handler if isinstance(handler, _OneInterrupt) else None


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
