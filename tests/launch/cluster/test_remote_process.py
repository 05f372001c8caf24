"""What is known of a launcher's rank, and what its report becomes."""

import time
from types import SimpleNamespace

import pytest

from gpt_parallel.launch.cluster.remote_process import RemoteProcess, reports_of, to_local_clock
from gpt_parallel.launch.watch import WatchedRank
from gpt_parallel.schema.result import BatchTimeline
from tests.support.factories import rank_report, round_report


class Hears:
    """A connection on which this comes, then nothing any more."""

    def __init__(self, *pieces):
        self.socket, self._pieces = self, iter((*pieces, b""))

    def send(self, message):
        raise BrokenPipeError

    def settimeout(self, timeout):
        assert timeout > 0

    def recv(self, size):
        return next(self._pieces)  # and raises if it is asked once more


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ((), ""),
        ((b'half"}\n{"phase": "load"}\n{"sta', b'cks": "File x\\n"}\n'), "File x"),
        ((b'{"stacks": "cut o',), ""),
    ],
)
def test_stacks_are_read_until_the_connection_ends(pieces, told):
    process = RemoteProcess(SimpleNamespace(connection=Hears(*pieces), process=None))

    process.request_stacks()

    assert process.read_stacks() == told


def test_ranks_share_one_deadline_for_their_stacks(monkeypatch):
    processes = [RemoteProcess(SimpleNamespace(connection=Hears(), process=None)) for _ in range(2)]
    timeouts = []
    monkeypatch.setattr(Hears, "settimeout", lambda self, timeout: timeouts.append(timeout))
    for process in processes:
        process.request_stacks()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)

    for process in processes:
        process.read_stacks()

    assert timeouts == [0.01, 0.01]


def oversubscribed(*places, cores_per_rank=1, device_name="CPU"):
    """Of ranks at (host, cores)."""
    pending = SimpleNamespace(clock_offset_s=0.0)
    ranks = [
        WatchedRank(
            rank, RemoteProcess(pending), -1, host=host, report=rank_report(rank, cores=cores, device_name=device_name)
        )
        for rank, (host, cores) in enumerate(places)
    ]
    return [report.place.oversubscribed for report in reports_of(ranks, cores_per_rank)]


def test_ranks_that_have_too_few_cores_of_their_own_are_marked():
    assert oversubscribed(("one", (0,)), ("one", (1,)), ("two", (0,))) == [False] * 3
    assert oversubscribed(("one", (0,)), ("one", (0,)), ("two", (0,))) == [True, True, False]
    assert oversubscribed(("one", (0, 1)), ("one", (2,)), cores_per_rank=2) == [False, True]
    assert oversubscribed(("one", (0, 1)), ("one", (1, 2)), cores_per_rank=2) == [True, True]
    assert oversubscribed(("one", ()), ("one", ()), device_name="H100") == [False, False]


def test_times_of_other_clocks_are_shifted():
    timed = round_report(5.0, 1.0, (2.0, 3.0))
    report = rank_report(
        rounds=(timed.model_copy(update={"timelines": (*timed.timelines, BatchTimeline(batch_id="1"))}),)
    )

    (shifted,) = to_local_clock(report, -0.5).rounds

    assert shifted.seconds == 5.0
    assert shifted.timelines[0] == BatchTimeline(batch_id="0", start_s=0.5, token_times_s=(1.5, 2.5))
    assert shifted.timelines[1].start_s is None
