"""Where time goes, with a clock that the test moves."""

from types import SimpleNamespace

import pytest
import torch

from gpt_parallel.engine.timing.breakdown import _Call, add_up, break_down


class Clock:
    """Stands in for the rank's stopwatch and for its wall clock."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("gpt_parallel.engine.timing.breakdown.time.monotonic", self.mark)

    def mark(self):
        return self.now

    start = mark

    def seconds(self, mark):
        return mark

    def synchronize(self):
        pass

    def takes(self, seconds, result=None):
        def call(*_, **__):
            self.now += seconds
            return result

        return call


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Model:
    """Its blocks reduce once, within."""

    def __init__(self, clock, collectives):
        self._clock, self._collectives = clock, collectives
        self.embed, self.head = clock.takes(1.0), clock.takes(8.0)

    def blocks(self, x):
        self._clock.now += 2.0
        self._collectives.all_reduce(x)
        self._clock.now += 4.0
        return x


class Transport:
    """Waits a second for its peer, moves for half of one."""

    waits_in = "_await"

    def __init__(self, clock):
        self._clock = clock
        self.send = self.receive = self.gather = clock.takes(0.25)
        self.barrier = lambda: self._await(3.0)

    def _await(self, seconds):
        self._clock.now += seconds

    def all_reduce(self, tensor):
        self._clock.now += 0.5
        self._await(1.0)
        return tensor


def pass_over(clock, model, sampler):
    x = torch.zeros(2, 3)

    def run():
        clock.now += 32.0
        model.embed(x)
        model.blocks(x)
        model.head(x)
        sampler.choose(x, record=False)

    return run


def test_the_innermost_section_has_the_time_and_all_add_up(clock):
    transport = Transport(clock)
    model, sampler = Model(clock, transport), SimpleNamespace(start=clock.takes(0), choose=clock.takes(16.0))

    found = break_down(pass_over(clock, model, sampler), clock, model, sampler, transport)

    assert found.compute_s == 1 + 2 + 4 + 8
    assert found.communication_s == 0.5
    assert found.waiting_s == 1 + 3, "in the sum, and for the end of the pass"
    assert found.sampling_s == 16
    assert found.host_s == 32
    assert found.wall_s == 67.5
    assert "timed where the transport waits" in found.method


def test_afterwards_the_objects_are_as_they_were(clock):
    transport = Transport(clock)
    model, sampler = Model(clock, transport), SimpleNamespace(start=clock.takes(0), choose=clock.takes(0))
    del transport.send, transport.receive, transport.gather, transport.barrier
    Transport.send = Transport.receive = Transport.gather = Transport.barrier = lambda *_: None
    before = [dict(vars(transport))]

    break_down(lambda: None, clock, model, sampler, transport)

    assert before == [vars(transport)]
    assert "blocks" not in vars(model)


def test_one_rank_waits_for_nobody(clock):
    model = Model(clock, SimpleNamespace(all_reduce=lambda x: x))
    sampler = SimpleNamespace(start=clock.takes(0), choose=clock.takes(1.0))

    found = break_down(pass_over(clock, model, sampler), clock, model, sampler, None)

    assert (found.communication_s, found.waiting_s) == (0, 0)
    assert found.compute_s == 15


def test_without_a_place_of_waiting_the_fastest_like_call_tells(clock):
    small, large = _Call("all_reduce", (2,)), _Call("all_reduce", (9,))
    marks = [(0.0, "host"), (1.0, small), (3.0, "compute"), (5.0, small), (10.0, large), (17.0, "host"), (18.0, "host")]

    found = add_up(marks)

    assert found["communication"] == 2 * 2 + 7
    assert found["waiting"] == 5 - 2
    assert found["compute"] == 2
    assert found["host"] == 1 + 1


def test_a_process_group_is_watched_call_by_call(clock):
    durations = iter((4.0, 1.0))

    class Group:
        waits_in = None

        def all_reduce(self, tensor):
            clock.now += next(durations)

        def barrier(self):
            clock.now += 7.0

        send = gather = receive = None

    group = Group()
    model = SimpleNamespace(embed=clock.takes(0), blocks=clock.takes(0), head=clock.takes(0))
    sampler = SimpleNamespace(start=clock.takes(0), choose=clock.takes(0))

    zeros, ones = torch.zeros(3), torch.ones(3)

    def run():
        group.all_reduce(zeros)
        group.all_reduce(ones)

    found = break_down(run, clock, model, sampler, group)

    assert (found.communication_s, found.waiting_s) == (2, 3 + 7)
    assert "estimated" in found.method
