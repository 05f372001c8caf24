"""The process of a rank that a launcher started, observed over its connection and, if it is local, by the system."""

import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import psutil

from gpt_parallel.launch.cluster.connection import PendingRank
from gpt_parallel.launch.watch import WatchedRank
from gpt_parallel.schema.result import RankReport

_STACKS_S = 2.0  # for ranks to send their stacks


@dataclass
class RemoteProcess:
    """A rank's process, on this machine or another."""

    pending: PendingRank
    missing_result: str = "ended, or its machine was cut off, without delivering a result"
    returncode: int | None = None
    stacks: str = ""
    _answer_by: float = 0.0

    def wait(self, timeout: float | None = None) -> int:
        """Called when the connection has closed, which does not reveal the exit code; returns 0."""
        self.returncode = 0
        return 0

    @property
    def is_stopped(self) -> bool:
        """Known only for processes on this machine."""
        with suppress(psutil.Error):
            return self.pending.process is not None and self.pending.process.status() == psutil.STATUS_STOPPED
        return False

    def request_stacks(self) -> None:
        self._answer_by = time.monotonic() + _STACKS_S
        with suppress(OSError):
            self.pending.connection.send({"stacks": True})
        if self.pending.process is not None:
            with suppress(psutil.Error):
                self.pending.process.send_signal(signal.SIGCONT)  # it may be stopped

    def read_stacks(self) -> str:
        """Wait for the stacks, which arrive as one of several events, if at all."""
        connection = self.pending.connection.socket
        text = b""
        while not self.stacks:
            connection.settimeout(max(0.01, self._answer_by - time.monotonic()))
            try:
                data = connection.recv(1 << 16)
            except OSError:
                break
            if not data:
                break
            text += data
            self.stacks = _stacks_among(text)
        return self.stacks


def _stacks_among(text: bytes) -> str:
    for line in text.split(b"\n")[:-1]:
        with suppress(ValueError):  # the end of an event whose beginning was read before
            event = json.loads(line)
            if "stacks" in event:
                return str(event["stacks"]).rstrip()
    return ""


def reports_of(ranks: Sequence[WatchedRank], cores_per_rank: int) -> tuple[RankReport, ...]:
    """The ranks' reports, with times converted to this machine's clock, marked where ranks shared cores."""
    taken = Counter((rank.host, core) for rank in ranks if rank.report for core in rank.report.place.cores)
    reports = []
    for rank in ranks:
        report = rank.report
        assert report is not None
        assert isinstance(rank.process, RemoteProcess)
        unshared = [core for core in report.place.cores if taken[rank.host, core] == 1]
        oversubscribed = report.place.device_name == "CPU" and len(unshared) < cores_per_rank
        converted = to_local_clock(report, rank.process.pending.clock_offset_s)
        reports.append(converted.placed(oversubscribed=oversubscribed))
    return tuple(reports)


def to_local_clock(report: RankReport, offset_s: float) -> RankReport:
    """Convert a report's times to this machine's clock, which is ahead of the rank's by `offset_s`."""
    if not offset_s or report.generated is None:
        return report
    rounds = tuple(
        each.model_copy(
            update={
                "timelines": tuple(
                    timeline.model_copy(
                        update={
                            "start_s": None if timeline.start_s is None else timeline.start_s + offset_s,
                            "token_times_s": tuple(time + offset_s for time in timeline.token_times_s),
                        }
                    )
                    for timeline in each.timelines
                )
            }
        )
        for each in report.rounds
    )
    return report.model_copy(update={"generated": report.generated.model_copy(update={"rounds": rounds})})
