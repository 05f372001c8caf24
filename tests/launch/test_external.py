"""Runs that a launcher starts: real processes of this machine, started as srun, mpirun and torchrun would."""

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from gpt_parallel.launch import external
from gpt_parallel.launch.external import on_clock
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.result import BatchTimeline, RankReport, RoundReport
from gpt_parallel.settings import make_settings
from gpt_parallel.spec import SpecError
from gpt_parallel.suite import Suite

STARTER = f"{sys.executable} {Path(__file__).parent.parent / 'starter.py'}"
HERE = "127.0.0.1:0"


@pytest.fixture
def make_suite(tmp_path):
    made = []

    def make(launcher, **settings):
        given = {"num_iterations": 1, "device": "cpu", "launcher_address": HERE, "log_dir": str(tmp_path / "logs")}
        made.append(Suite(make_settings("smoke", {**given, "launcher": launcher, **settings})))
        return made[-1]

    yield make
    for suite in made:
        if "external" in vars(suite.runner):
            suite.runner.external.close()


def ranks_alive():
    return [p for p in psutil.Process().children(recursive=True) if "gpt_parallel.engine.remote" in p.cmdline()]


@pytest.mark.parametrize("kind", ["srun", "mpirun"])
def test_a_case_is_run_and_verified(make_suite, kind):
    suite = make_suite(f"{STARTER} {kind} {{num_gpus}}")

    result = suite.run(suite.spec("tensor_data_hybrid", 2))

    assert result.verification.status == "exact"
    assert result.spec.execution.backend == "gloo"
    assert [rank.host for rank in result.ranks] == [socket.gethostname()] * 2
    assert [rank.rank for rank in result.ranks] == [0, 1]
    if len(os.sched_getaffinity(0)) > 1:
        assert len({rank.cores for rank in result.ranks}) == 2
    assert 0 < result.figures.ttft_s < result.figures.latency_s < max(result.figures.round_seconds) + 1
    assert ranks_alive() == []


def test_a_lone_rank_needs_no_others(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}")

    assert suite.run(suite.spec("pure_data_parallel", 1)).verification.status == "exact"


def test_crowded_machines_are_marked(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False, cores_per_rank=len(os.sched_getaffinity(0)) + 1)

    assert suite.run(suite.spec("pure_data_parallel", 1)).spec.execution.oversubscribed


def test_a_killed_rank_is_named_and_the_next_run_passes(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False)
    killed = []

    def kill(rank, phase):
        if not killed and phase.startswith("round") and (alive := ranks_alive()):
            killed.append(alive[0])
            alive[0].kill()

    suite.runner.on_phase = kill
    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec("tensor_data_hybrid", 2))
    suite.runner.on_phase = lambda rank, phase: None

    assert "ended, or its machine was cut off, without delivering a result in phase 'round" in str(failure.value)
    assert "logs of all ranks: " in str(failure.value)
    assert ranks_alive() == []
    assert suite.run(suite.spec("tensor_data_hybrid", 2)).outputs


def test_a_deadline_names_phases_and_shows_stacks(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False, timeout_s=15)
    stopped = []

    def stop(rank, phase):
        if not stopped and phase.startswith("round") and (alive := ranks_alive()):
            stopped.append(alive[0])
            alive[0].suspend()

    suite.runner.on_phase = stop
    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec("tensor_data_hybrid", 2))

    assert "did not finish within 15 s: rank 0 on " in str(failure.value)
    assert "most recent call first:" in str(failure.value)
    assert "all_reduce" in str(failure.value) or "barrier" in str(failure.value)
    assert ranks_alive() == []


def test_a_launcher_that_ends_is_the_error_with_what_it_printed(make_suite):
    suite = make_suite("sh -c 'echo no nodes today; exit 7'", verify=False)

    with pytest.raises(LaunchError, match=r"(?s)launcher 'sh' ended with code 7; 0 of 2 ranks.*\n  no nodes today"):
        suite.run(suite.spec("pure_data_parallel", 2))


def test_a_launcher_that_starts_too_many_is_told_so(make_suite):
    suite = make_suite(f"{STARTER} srun 2", verify=False)

    with pytest.raises(LaunchError, match="the launcher started 2 ranks, but the case needs 1"):
        suite.run(suite.spec("pure_data_parallel", 1))
    assert ranks_alive() == []


def test_a_launcher_that_starts_nothing_meets_the_deadline(make_suite):
    suite = make_suite("sh -c 'read forever < /dev/zero'", verify=False, timeout_s=1)

    with pytest.raises(LaunchError, match=r"did not start within 1 s: 0 of 2 ranks have reported at 127.0.0.1:\d+"):
        suite.run(suite.spec("pure_data_parallel", 2))


def test_strangers_at_the_door_do_no_harm(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False)
    spec = suite.spec("pure_data_parallel", 2)
    port = int(suite.runner.external._reception.address.rpartition(":")[2])
    silent = socket.create_connection(("127.0.0.1", port))
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\n",
        b"[" * 60_000 + b"\n",
        b"{}\n",
        b'{"run": "other"}\n',
        b"x" * 99_999,
    ):
        with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(words)

    with silent:
        assert suite.run(spec).outputs


def test_a_rank_of_another_version_is_refused(make_suite, monkeypatch):
    monkeypatch.setattr(external, "__version__", "9.9")
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False)

    with pytest.raises(LaunchError, match=r"gpt_parallel is 9\.9 here and .* on .*; install one version"):
        suite.run(suite.spec("pure_data_parallel", 1))


def test_ranks_end_when_the_one_that_wanted_them_is_killed():
    code = """
import sys, psutil
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite
def show(rank, phase):
    if phase.startswith("round 1"):
        print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True)
        sys.stdin.read()
given = {"device": "cpu", "verify": False, "launcher": sys.argv[1], "launcher_address": sys.argv[2]}
suite = Suite(make_settings("smoke", given), show)
suite.run(suite.spec("tensor_data_hybrid", 2))
"""
    with psutil.Popen(
        [sys.executable, "-c", code, f"{STARTER} srun {{num_gpus}}", HERE], stdin=-1, stdout=-1, text=True
    ) as parent:
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)

    _, left = psutil.wait_procs(processes, timeout=5)
    assert len(processes) >= 3
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def test_an_address_that_cannot_be_listened_on_is_refused_before_anything_runs(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", launcher_address="192.0.2.1:29401")

    with pytest.raises(SpecError, match=r"launcher address 192\.0\.2\.1:29401: cannot be listened on"):
        suite.spec("pure_data_parallel", 2)


def test_times_of_other_clocks_are_shifted():
    timeline = BatchTimeline(batch_id="0", start_s=1.0, token_times_s=(2.0, 3.0))
    report = RankReport(
        **{"rank": 0, "stage": 0, "replica": 0, "shard": 0, "layers": (0, 1), "num_heads": 1, "parameter_bytes": 1},
        rounds=(RoundReport(seconds=5.0, timelines=(timeline, BatchTimeline(batch_id="1"))),),
    )

    (shifted,) = on_clock(report, -0.5).rounds

    assert shifted.seconds == 5.0
    assert shifted.timelines[0] == BatchTimeline(batch_id="0", start_s=0.5, token_times_s=(1.5, 2.5))
    assert shifted.timelines[1].start_s is None
