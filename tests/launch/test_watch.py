"""What a rank tells, as the watcher reads it: whole events, however they arrive, and nothing else believed."""

import json
import os

import pytest

from gpt_parallel.launch import watch
from gpt_parallel.launch.watch import WatchedRank


@pytest.fixture
def rank():
    """A rank's channel: rank.say(bytes) has it tell that, `rank.phases` are those that were entered."""
    read_end, write_end = os.pipe()
    watched = WatchedRank(1, process=None, channel=read_end)
    watched.phases = []

    def say(data):
        os.write(write_end, data)
        return watched.read_events(lambda number, phase: watched.phases.append((number, phase)))

    watched.say = say
    yield watched
    os.close(read_end)
    os.close(write_end)


def test_events_may_come_in_pieces(rank):
    assert rank.say(b'{"phase": "con')
    assert rank.phases == []
    assert rank.say(b'nect"}\n{"phase": "load weights"}\n{"ph')

    assert rank.phases == [(1, "connect"), (1, "load weights")]
    assert rank.phase == "load weights"


@pytest.mark.parametrize(
    "line",
    [b"nonsense", b"\xff", b"[]", b"{}", b"3", b'{"report": {}}', b'{"phase": "x", "error": "y"}', b"[" * 50_000],
)
def test_a_malformed_event_is_that_rank_s_failure(rank, line):
    rank.say(b'{"phase": "load weights"}\n' + line + b"\n")

    assert rank.error["error"] == "it delivered a malformed event or result"
    assert rank.error["phase"] == "load weights"
    assert not rank.error["lost_peer"]
    assert rank.has_failed


def test_an_event_without_end_is_not_kept(rank, monkeypatch):
    monkeypatch.setattr(watch, "_MAX_EVENT_BYTES", 10)

    assert not rank.say(b"x" * 11)

    assert rank.has_failed


def test_an_answer_that_comes_too_late_is_no_event(rank):
    rank.say(json.dumps({"stacks": "late"}).encode() + b"\n")

    assert not rank.has_failed
    assert rank.phases == []
