"""A rank's process that a launcher started, as its connection tells and, where it is on this machine, the system."""

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

_STACKS_S = 2.0  # for ranks to tell their stacks


@dataclass
class RemoteProcess:
    """A rank's process, wherever it is."""

    pending: PendingRank
    vanished: str = "ended, or its machine was cut off, without delivering a result"
    returncode: int | None = None
    stacks: str = ""
    _answer_by: float = 0.0

    def wait(self, timeout: float | None = None) -> int:
        """Called when the connection has closed; how the process ended is not told."""
        self.returncode = 0
        return 0

    @property
    def is_stopped(self) -> bool:
        """Known of those on this machine."""
        with suppress(psutil.Error):
            return self.pending.process is not None and self.pending.process.status() == psutil.STATUS_STOPPED
        return False

    def ask_for_stacks(self) -> None:
        self._answer_by = time.monotonic() + _STACKS_S
        with suppress(OSError):
            self.pending.connection.tell({"stacks": True})
        if self.pending.process is not None:
            with suppress(psutil.Error):
                self.pending.process.send_signal(signal.SIGCONT)  # it may be stopped

    def read_stacks(self) -> str:
        """The answer, an event among others, which may come or not."""
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
        with suppress(ValueError):  # the end of an event that was begun before
            event = json.loads(line)
            if "stacks" in event:
                return str(event["stacks"]).rstrip()
    return ""


def reports_of(ranks: Sequence[WatchedRank], cores_per_rank: int) -> tuple[RankReport, ...]:
    """Reports of ranks that delivered one, with times by this machine's clock, and whether they shared cores."""
    taken = Counter((rank.host, core) for rank in ranks if rank.report for core in rank.report.place.cores)
    reports = []
    for rank in ranks:
        report = rank.report
        assert report is not None
        assert isinstance(rank.process, RemoteProcess)
        alone = [core for core in report.place.cores if taken[rank.host, core] == 1]
        oversubscribed = report.place.device_name == "CPU" and len(alone) < cores_per_rank
        on_our_clock = on_clock(report, rank.process.pending.clock_offset_s)
        reports.append(on_our_clock.placed(oversubscribed=oversubscribed))
    return tuple(reports)


def on_clock(report: RankReport, offset_s: float) -> RankReport:
    """A report whose batches' times are of a clock that is so much ahead."""
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
