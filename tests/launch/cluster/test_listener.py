"""Who is taken for a rank of a run, and what hanging up or calling in twice does."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from gpt_parallel import __version__
from gpt_parallel.base.host import clock_id, pid_space
from gpt_parallel.launch.cluster.assignment import assign_ranks, check
from gpt_parallel.launch.cluster.listener import RankListener
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.handshake import Hello
from gpt_parallel.schema.run import ExecutionSpec, Job, JobKind, MeshSpec
from tests.support.factories import run_spec


def spec(num_ranks, **changes):
    return run_spec(
        mesh=MeshSpec(pp=num_ranks), execution=ExecutionSpec(device="cpu", dtype="float32", backend="gloo", **changes)
    )


@pytest.fixture
def listener():
    made = RankListener("127.0.0.1", 0)
    yield made
    made.close()


@pytest.fixture
def call(listener):
    """call(rank, **changes): a process that says hello as a rank of the run "run"; its socket."""
    with ExitStack() as stack:

        def call(rank, size=2, **changes):
            fields = {
                "run": "run",
                "version": __version__,
                "host": "one",
                "clock": clock_id(),
                "pid": 1,
                "pid_space": "",
            }
            caller = socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2])), timeout=10)
            stack.enter_context(caller)
            hello = Hello(rank=rank, size=size, **fields | changes)
            caller.sendall(hello.model_dump_json().encode() + b"\n")
            return caller

        yield call


@pytest.fixture
def gather(listener):
    """gather(size, go_on): the guests; `go_on` is told how many there are, each time that changes."""
    made = []

    def gather(size, go_on=lambda num_guests: None):
        pending_ranks, told = [], []

        def changed(pending_ranks):
            if told[-1:] != [len(pending_ranks)]:
                told.append(len(pending_ranks))
                go_on(len(pending_ranks))

        made.append(pending_ranks)
        listener.gather(pending_ranks, "run", size, {"start": "run"}, changed)
        return pending_ranks

    yield gather
    for pending in (pending for pending_ranks in made for pending in pending_ranks):
        pending.connection.close()


def test_of_two_with_one_number_the_later_stays(call, gather):
    """torchrun --max-restarts starts ranks again."""
    first = call(1)
    later = []
    pending_ranks = gather(2, lambda num: later or later.append([call(1), call(0)]) if num == 1 else None)

    assert [pending.hello.rank for pending in pending_ranks] == [1, 0]
    assert first.recv(1) == b"", "it is hung up on"
    ports = [pending.connection.socket.getpeername()[1] for pending in pending_ranks]
    assert ports == [caller.getsockname()[1] for caller in later[0]]


def test_who_hangs_up_is_no_longer_waited_for(call, gather):
    gone = call(0)
    steps = iter([lambda: None, gone.close, lambda: (call(1), call(0, host="two"))])
    pending_ranks = gather(2, lambda num: next(steps, lambda: None)())

    assert {pending.hello.rank: pending.hello.host for pending in pending_ranks} == {1: "one", 0: "two"}


def test_a_number_that_cannot_be_is_told(call, gather):
    call(2)
    (pending,) = gather(1)

    with pytest.raises(LaunchError, match=r"gave a process on one \(127\.0\.0\.1\) rank 2, but ranks go from 0 to 1"):
        check(pending, spec(2))


def test_a_rank_that_does_not_answer_is_waited_for_until_the_run_s_deadline(call, gather):
    callers = [call(rank, clock="another") for rank in range(2)]
    pending_ranks = gather(2)

    with pytest.raises(LaunchError, match="did not start within 7 s: a rank does not answer"):
        assign_ranks(pending_ranks, Job(kind=JobKind.GENERATE, spec=spec(2, timeout_s=7.0)), time.monotonic() + 0.05)
    assert callers


def test_a_rank_may_take_long_to_answer(call, gather, monkeypatch):
    """Its import of torch, on a slow file system, does."""
    caller = call(0, clock="another")
    (pending,) = gather(1)
    timeouts = []
    settimeout = pending.connection.socket.settimeout
    monkeypatch.setattr(
        type(pending.connection), "receive", lambda self, timeout_s: timeouts.append(timeout_s) or b'{"x": 1}'
    )

    assert pending.connection.request({"ping": True}, "x", time.monotonic() + 500) == 1
    assert timeouts[0] > 400
    assert caller
    settimeout(None)


@pytest.mark.parametrize(("run", "is_ended"), [("run", True), ("other", False)])
def test_only_a_process_of_the_run_is_ended_with_its_guest(call, gather, run, is_ended):
    """A pid is what somebody says."""
    code = "import sys; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, run], stdin=subprocess.PIPE) as process:
        call(0, pid=process.pid, pid_space=pid_space())
        (pending,) = gather(1)

        pending.disconnect()

        process.stdin.close()
        assert process.wait(10) == (-9 if is_ended else 0)


def test_a_process_of_another_machine_is_not_looked_for_here(call, gather):
    call(0, pid=os.getpid(), pid_space="another")
    (pending,) = gather(1)

    assert pending.process is None


def test_a_follower_is_told_what_to_start(listener, call, gather):
    with socket.create_connection(("127.0.0.1", int(listener.address.rpartition(":")[2])), timeout=10) as follower:
        follower.sendall(b'{"follow": "two"}\n')
        gather(1, lambda num: num or call(0))

        assert json.loads(follower.makefile().readline()) == {"start": "run"}
