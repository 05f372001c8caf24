"""Watches the ranks of a run until they end, on this machine or others.

Every rank reports its phases, its failure or its result on a channel, which is a pipe or a socket. A channel closes
when its rank ends, so the watcher sleeps until something happens and takes no time from the ranks.
"""

import json
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpt_parallel.schema.result import RankReport

OnPhase = Callable[[int, str], None]

_MAX_EVENT_BYTES = 256 << 20
_SETTLE_S = 1.0  # after a first failure, in which a peer that caused it may report


class Observer(Protocol):
    """Observes the machine while ranks run."""

    def on_phase(self, rank: int, phase: str) -> None:
        """Called when a rank enters a phase."""

    def poll(self) -> float:
        """Take a reading if one is due; return the seconds until the next one."""


class RankProcess(Protocol):
    """The process of a rank, on this machine or another."""

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until the process has ended."""

    @property
    def missing_result(self) -> str:
        """The message for an end without failure or result, such as "exited without delivering a result"."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises subprocess.TimeoutExpired."""

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP, SIGTSTP)."""

    def request_stacks(self) -> None:
        """Request the Python stack of each of its threads."""

    def read_stacks(self) -> str:
        """The requested stacks; empty if the process does not deliver any."""


@dataclass
class WatchedRank:
    """A rank's process, and what it has reported so far."""

    rank: int
    process: RankProcess
    channel: int
    log: Path | None = None
    host: str | None = None  # None for this machine
    phase: str = "start"
    error: dict[str, Any] | None = None
    report: RankReport | None = None
    ended: bool = False
    stacks: str = ""
    history: list[tuple[float, str]] = field(default_factory=list)
    _pending: bytearray = field(default_factory=bytearray)

    @property
    def title(self) -> str:
        return f"rank {self.rank}" + (f" on {self.host}" if self.host else "")

    @property
    def has_failed(self) -> bool:
        return self.error is not None or (self.ended and (self.process.returncode != 0 or self.report is None))

    @property
    def was_killed(self) -> bool:
        return self.ended and self.process.returncode == -signal.SIGKILL

    def printed(self) -> str:
        """The rank's standard output and error."""
        return self.log.read_text(encoding="utf-8", errors="replace").rstrip() if self.log else ""

    def read_events(self, on_phase: OnPhase) -> bool:
        """Read the events that are in the channel; False at its end."""
        try:
            data = os.read(self.channel, 1 << 16)
        except OSError:  # the connection was lost
            data = b""
        self._pending += data
        if b"\n" in data:
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                self._handle(bytes(line), on_phase)
        elif len(self._pending) > _MAX_EVENT_BYTES:
            self._pending.clear()
            self._reject(f"an event of more than {_MAX_EVENT_BYTES} bytes")
            return False
        return bool(data)

    def _handle(self, line: bytes, on_phase: OnPhase) -> None:
        try:
            event = json.loads(line)
            if "stacks" in event:
                return  # a late answer to a request
            if "report" in event:
                self.report = RankReport.model_validate(event["report"])
                return
            phase, error = str(event["phase"]), event.get("error")
            if error is not None:
                self.error = {"phase": phase, "error": str(error), **{k: event[k] for k in ("traceback", "lost_peer")}}
        except (ValueError, KeyError, TypeError, RecursionError) as malformed:  # pydantic's is a ValueError
            self._reject(f"{type(malformed).__name__}: {malformed}")
            return
        self.phase = phase
        if error is None:
            self.history.append((time.monotonic(), phase))
            on_phase(self.rank, phase)

    def _reject(self, problem: str) -> None:
        """Record a malformed event as the rank's failure; only a broken rank sends one."""
        failure = {"error": "it delivered a malformed event or result", "traceback": problem}
        self.error = {"phase": self.phase, "lost_peer": False, **failure}


class MissedDeadlineError(Exception):
    """Some ranks still run at the deadline."""


def watch(ranks: Sequence[WatchedRank], timeout_s: float, on_phase: OnPhase, observer: Observer | None = None) -> bool:
    """Wait for all ranks; True if all ended well. Returns soon after a first failure; raises MissedDeadlineError."""
    deadline = time.monotonic() + timeout_s
    failed_at: float | None = None
    with selectors.DefaultSelector() as selector:
        for rank in ranks:
            selector.register(rank.channel, selectors.EVENT_READ, rank)
        while selector.get_map():
            limit = deadline if failed_at is None else min(deadline, failed_at + _SETTLE_S)
            remaining = limit - time.monotonic()
            if remaining <= 0:
                break
            pause = observer.poll() if observer else math.inf
            for key, _ in selector.select(min(remaining, pause)):
                rank = key.data
                if not rank.read_events(on_phase):
                    selector.unregister(rank.channel)
                    with suppress(subprocess.TimeoutExpired):
                        rank.process.wait(max(0.0, deadline - time.monotonic()))
                        rank.ended = True
                if rank.was_killed:
                    return False  # a peer cannot be the cause
                if failed_at is None and rank.has_failed:
                    failed_at = time.monotonic()
    if failed_at is not None:
        return False
    if not all(rank.ended for rank in ranks):
        raise MissedDeadlineError
    return True
