"""The process that ranks are forks of: shared, replaced, and gone in time."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gpt_parallel.launch import fork_server, local
from gpt_parallel.launch.failure import LaunchError
from tests.support.paths import ROOT
from tests.support.processes import environment

pytestmark = pytest.mark.usefixtures("users_server")

SCRIPT = """
import os, sys
from pathlib import Path
import psutil
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.schema.run import FaultSpec
from gpt_parallel.bench.suite import Suite

def show(rank, phase):
    if (rank, phase) == (1, sys.argv[1]):
        print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)

fault = FaultSpec.parse(sys.argv[2]) if sys.argv[2] else None
suite = Suite(make_settings("smoke", {"num_iterations": 1, "device": "cpu", "verify": False}), show, fault)
suite.run(suite.spec("pure_data_parallel", 2))
eval(sys.argv[3])
"""


def run_two_ranks(suite):
    return suite.run(suite.spec("pure_data_parallel", 2))


def assert_gone(processes, within_s=5.0):
    """Ended and, where their new parent has been slow to notice, nothing but an entry in the process table."""
    _, left = psutil.wait_procs(processes, timeout=within_s)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def links(pid):
    """The pipes and sockets that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(entry))
        except FileNotFoundError:
            continue
    return {link for link in found if link.startswith(("pipe:", "socket:"))}


def test_launches_share_a_server_with_one_thread(suite, server_pid):
    run_two_ranks(suite)
    first = server_pid()
    run_two_ranks(suite)

    assert server_pid() == first
    assert psutil.Process(first).num_threads() == 1
    assert psutil.Process(first).children() == []


def test_ranks_hold_nothing_of_each_other_or_the_server(suite, server_pid, ranks_alive):
    """An inherited pipe would keep a rank's end from being noticed; sockets of the test process are its own."""
    held = []

    def look(rank, phase):
        if not held and phase.startswith("round 1"):
            held.extend([links(server_pid()), *(links(process.pid) for process in ranks_alive())])

    suite.runner.on_phase = look
    run_two_ranks(suite)

    server, one, other = held
    assert len(server & one) == len(server & other) == 1, "the pipe on which the server says how the rank ended"
    assert not one & other
    deadline = time.monotonic() + 10
    while len(links(server_pid())) > len(server) - 2 and time.monotonic() < deadline:
        os.sched_yield()  # it may still be closing what was the last rank's
    assert len(links(server_pid())) == len(server) - 2


def test_a_server_killed_while_ranks_run_is_named_and_the_next_run_passes(suite, server_pid, ranks_alive):
    ranks = []

    def kill(rank, phase):
        if phase == "load weights" and not ranks:
            ranks.extend(ranks_alive())
            os.kill(server_pid(), signal.SIGKILL)

    suite.runner.on_phase = kill
    with pytest.raises(LaunchError) as failure:
        run_two_ranks(suite)
    killed, suite.runner.on_phase = server_pid(), lambda rank, phase: None

    assert f"the process that starts ranks (pid {killed}) was killed by signal 9 (SIGKILL)" in str(failure.value)
    assert len(ranks) == 2
    assert_gone(ranks, within_s=1)
    assert run_two_ranks(suite).figures.throughput_tok_s > 0
    assert server_pid() != killed


def test_the_server_outlives_the_thread_that_started_it(suite, server_pid):
    fork_server.stop()
    used = []
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(run_two_ranks, suite).result().outputs
        used.append(server_pid())

    assert used[0] == used[1]


def test_a_server_that_ended_between_launches_is_replaced(suite, server_pid):
    fork_server.warm_up()
    ended = server_pid()
    os.kill(ended, signal.SIGKILL)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)

    assert run_two_ranks(suite).outputs
    assert server_pid() != ended


@pytest.mark.parametrize("change", ["search path", "MALLOC_ARENA_MAX", "directory"])
def test_what_a_process_takes_from_its_start_needs_a_new_server(suite, server_pid, monkeypatch, tmp_path, change):
    fork_server.warm_up()
    before = psutil.Process(server_pid())
    if change == "directory":
        monkeypatch.chdir(tmp_path)
    elif change == "search path":
        monkeypatch.syspath_prepend(tmp_path)
    else:
        monkeypatch.setenv(change, "4")

    fork_server.warm_up()

    assert server_pid() != before.pid
    assert not before.is_running()
    assert run_two_ranks(suite).outputs


@pytest.mark.parametrize("forks", [True, False])
def test_ranks_run_what_is_imported_here_whatever_lies_in_the_working_directory(suite, monkeypatch, tmp_path, forks):
    (tmp_path / "random.py").write_text("raise SystemExit('not the standard library')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fork_server, "AVAILABLE", forks)

    assert run_two_ranks(suite).outputs


def test_a_torch_that_cannot_be_imported_is_the_error(suite, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not itself today')")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(LaunchError, match=r"(?s)exited with code 1; .*ImportError: torch is not itself today"):
        run_two_ranks(suite)


def test_a_server_that_never_gets_ready_meets_the_deadline(make_suite, server_pid, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("import signal; signal.pause()")
    monkeypatch.syspath_prepend(tmp_path)
    suite = make_suite(timeout_s=1)

    with pytest.raises(LaunchError, match=r"within 1 s: rank 0 was in phase 'start'; rank 1 was in phase 'start'"):
        run_two_ranks(suite)

    assert not psutil.pid_exists(server_pid())


def test_a_server_that_is_stuck_meets_the_deadline_and_the_next_run_passes(make_suite, server_pid, ranks_alive):
    run_two_ranks(make_suite())  # the server has torch by now
    suite = make_suite(timeout_s=5)
    suite.runner.on_phase = lambda rank, phase: phase == "finish" and os.kill(server_pid(), signal.SIGSTOP)

    with pytest.raises(LaunchError, match=r"within 5 s: .* was in phase 'finish'"):
        run_two_ranks(suite)
    suite.runner.on_phase = lambda rank, phase: None

    assert ranks_alive() == []
    assert run_two_ranks(suite).outputs


def test_a_worker_that_cannot_be_imported_says_so(suite, monkeypatch):
    monkeypatch.setattr(local, "WORKER", "gpt_parallel.engine.no_such_worker")

    with pytest.raises(LaunchError, match=r"(?s)^rank \d exited with code 1 in phase 'start'.*No module named"):
        run_two_ranks(suite)


@pytest.mark.parametrize(
    ("end", "fault", "phase"),
    [("killed", "round:1:hang", "warm up"), ("sys.exit()", "", "round 1 of 1"), ("os._exit(0)", "", "round 1 of 1")],
)
def test_nothing_outlives_the_process_that_launches(end, fault, phase):
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, phase, fault, end],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
    ) as parent:
        processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        if end == "killed":
            parent.kill()
        code = parent.wait(60)

    assert code == (-signal.SIGKILL if end == "killed" else 0)
    assert len(processes) == 3
    assert_gone(processes)


def test_without_a_server_ranks_are_plain_processes(suite, monkeypatch):
    monkeypatch.setattr(fork_server, "AVAILABLE", False)
    monkeypatch.setattr(fork_server, "_current", None)

    assert run_two_ranks(suite).figures.throughput_tok_s > 0
    assert fork_server._current is None
