"""Watches the ranks of a run to its end, wherever they run.

Every rank has a channel, a pipe or a socket, on which it reports its phases, its failure or its result. A channel that
closes is a rank that ended, so the watcher sleeps until something happens and takes no time from the ranks.
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
_SETTLE_S = 1.0  # after a first failure, for its cause to show where it was a peer's


class Observer(Protocol):
    """Something that looks at the machine while ranks run."""

    def entered(self, rank: int, phase: str) -> None:
        """A rank enters a phase."""

    def look(self) -> float:
        """Look now if it is time; the seconds until it is time again."""


class RankProcess(Protocol):
    """The process of a rank, here or elsewhere."""

    @property
    def returncode(self) -> int | None:
        """Once it has ended; negative for a signal."""

    @property
    def vanished(self) -> str:
        """What is said of it when it ended without a word, such as "exited without delivering a result"."""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; raises subprocess.TimeoutExpired."""

    @property
    def is_stopped(self) -> bool:
        """Whether a signal has stopped it (SIGSTOP, SIGTSTP)."""

    def ask_for_stacks(self) -> None:
        """Have it tell the Python stack of each of its threads."""

    def read_stacks(self) -> str:
        """What it told; empty if it cannot."""


@dataclass
class WatchedRank:
    """What is known of a rank."""

    rank: int
    process: RankProcess
    channel: int
    log: Path | None = None
    host: str | None = None  # where it is not this one
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
        """What it wrote to its standard output and error."""
        return self.log.read_text(encoding="utf-8", errors="replace").rstrip() if self.log else ""

    def take_events(self, on_phase: OnPhase) -> bool:
        """Take what the channel holds; False at its end."""
        try:
            data = os.read(self.channel, 1 << 16)
        except OSError:  # a connection that was lost
            data = b""
        self._pending += data
        if b"\n" in data:
            *lines, self._pending = self._pending.split(b"\n")
            for line in lines:
                self._take(bytes(line), on_phase)
        elif len(self._pending) > _MAX_EVENT_BYTES:
            self._pending.clear()
            self._refuse(f"an event of more than {_MAX_EVENT_BYTES} bytes")
            return False
        return bool(data)

    def _take(self, line: bytes, on_phase: OnPhase) -> None:
        try:
            event = json.loads(line)
            if "stacks" in event:
                return  # an answer that came too late
            if "report" in event:
                self.report = RankReport.model_validate(event["report"])
                return
            phase, error = str(event["phase"]), event.get("error")
            if error is not None:
                self.error = {"phase": phase, "error": str(error), **{k: event[k] for k in ("traceback", "lost_peer")}}
        except (ValueError, KeyError, TypeError, RecursionError) as malformed:  # pydantic's is a ValueError
            self._refuse(f"{type(malformed).__name__}: {malformed}")
            return
        self.phase = phase
        if error is None:
            self.history.append((time.monotonic(), phase))
            on_phase(self.rank, phase)

    def _refuse(self, problem: str) -> None:
        """What a rank of this suite never does; it may be one that fell apart."""
        told = {"error": "it delivered a malformed event or result", "traceback": problem}
        self.error = {"phase": self.phase, "lost_peer": False, **told}


class MissedDeadlineError(Exception):
    """Ranks still run at the deadline."""


def watch(ranks: Sequence[WatchedRank], timeout_s: float, on_phase: OnPhase, observer: Observer | None = None) -> bool:
    """Whether every rank ended well. Returns soon after a first failure; raises MissedDeadlineError."""
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
            pause = observer.look() if observer else math.inf
            for key, _ in selector.select(min(remaining, pause)):
                rank = key.data
                if not rank.take_events(on_phase):
                    selector.unregister(rank.channel)
                    with suppress(subprocess.TimeoutExpired):
                        rank.process.wait(max(0.0, deadline - time.monotonic()))
                        rank.ended = True
                if rank.was_killed:
                    return False  # no peer did that
                if failed_at is None and rank.has_failed:
                    failed_at = time.monotonic()
    if failed_at is not None:
        return False
    if not all(rank.ended for rank in ranks):
        raise MissedDeadlineError
    return True
