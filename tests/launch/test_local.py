"""Starting, watching and stopping real ranks."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from gpt_parallel.launch import fork_server
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.local import cores_of
from gpt_parallel.launch.run_directory import run_directory
from tests import mutants


def run_and_time_failure(suite, strategy="pure_data_parallel"):
    """The error of a two-rank run, and seconds from the last phase any rank entered to the error."""
    entered = []
    suite._on_phase = lambda rank, phase: entered.append(time.monotonic())
    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec(strategy, 2))
    return str(failure.value), time.monotonic() - entered[-1]


@pytest.mark.parametrize("strategy", ["pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid"])
def test_a_killed_rank_is_named_at_once_and_the_next_run_passes(suite, mutate, ranks_alive, monkeypatch, strategy):
    mutate(mutants.kill_rank_1_while_generating)
    message, delay_s = run_and_time_failure(suite, strategy)
    monkeypatch.undo()

    assert message.startswith("rank 1 killed by signal 9 (SIGKILL; out-of-memory killer?) in phase ")
    assert delay_s < 5
    assert ranks_alive() == []
    assert suite.run(suite.spec(strategy, 2)).figures.throughput_tok_s > 0


def test_a_raising_rank_is_reported_with_phase_and_traceback(suite, mutate, ranks_alive):
    mutate(mutants.raise_on_rank_1_while_loading)

    message, delay_s = run_and_time_failure(suite, "tensor_data_hybrid")

    assert message.startswith("rank 1 failed in phase 'load weights': ArithmeticError: the weights are off today")
    assert "in broken" in message
    assert delay_s < 5
    assert ranks_alive() == []


def test_a_failed_run_s_logs_are_kept(make_suite, mutate, tmp_path):
    mutate(mutants.raise_on_rank_1_while_loading)
    suite = make_suite(log_dir=str(tmp_path / "logs"))

    message, _ = run_and_time_failure(suite)

    (directory,) = (tmp_path / "logs").iterdir()
    assert f"logs of all ranks: {directory}" in message
    assert " s  connect\n" in (directory / "rank_0.log").read_text()
    assert "ArithmeticError: the weights are off today" in (directory / "rank_1.log").read_text()


def test_exiting_well_without_a_result_is_a_failure(suite, mutate, ranks_alive):
    mutate(mutants.exit_on_rank_1_without_a_result)

    message, _ = run_and_time_failure(suite)

    # Rank 0 may lose its peer first, but the rank that went away is the one to name.
    assert message.startswith("rank 1 exited without delivering a result")
    assert ranks_alive() == []


def test_a_hanging_rank_meets_the_deadline(make_suite, mutate, ranks_alive):
    mutate(mutants.hang_on_rank_1)
    suite = make_suite(num_iterations=1, timeout_s=8)

    with pytest.raises(LaunchError, match=r"did not finish within 8 s: rank 0 was in phase .*; rank 1 was in phase "):
        suite.run(suite.spec("pure_data_parallel", 2))

    assert ranks_alive() == []


def test_an_interrupt_stops_all_ranks(suite, ranks_alive):
    def interrupt(rank, phase):
        if phase == "load weights":
            raise KeyboardInterrupt

    suite._on_phase = interrupt
    with pytest.raises(KeyboardInterrupt):
        suite.run(suite.spec("tensor_data_hybrid", 2))

    assert ranks_alive() == []


def test_ranks_see_a_clean_environment(suite, mutate, monkeypatch, tmp_path):
    """That of the launch, without stale launcher variables, whatever the server was started with."""
    mutate(mutants.show_environment)
    monkeypatch.setenv("GPT_PARALLEL_TEST_OLD", "1")
    fork_server.warm_up()
    monkeypatch.delenv("GPT_PARALLEL_TEST_OLD")
    monkeypatch.setenv("GPT_PARALLEL_TEST_NEW", "\udcff\n" * 50_000)
    monkeypatch.setenv("MASTER_ADDR", "stale.example")
    monkeypatch.setenv("WORLD_SIZE", "77")
    monkeypatch.setenv(mutants.SHOWN, str(tmp_path))

    suite.run(suite.spec("tensor_data_hybrid", 2))

    for rank in ("0", "1"):
        lines = (tmp_path / rank).read_bytes().decode(errors="surrogateescape").split("\0")
        environment = dict(line.split("=", 1) for line in lines if line)
        assert environment["RANK"] == environment["LOCAL_RANK"] == rank
        assert environment["WORLD_SIZE"] == "2"
        assert environment["OMP_NUM_THREADS"] == "1"
        assert environment["GPT_PARALLEL_TEST_NEW"] == os.environ["GPT_PARALLEL_TEST_NEW"]
        assert not {"MASTER_ADDR", "GPT_PARALLEL_TEST_OLD"} & set(environment)


def test_ranks_are_private(suite, ranks_alive, monkeypatch, tmp_path):
    """A directory that goes away, cores and a session of their own; they listen on the loopback interface only."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen = {}

    def look(rank, phase):
        if phase.startswith("round 1") and rank == 1:
            for process in ranks_alive():
                addresses = {c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
                seen[process.pid] = (addresses, process.cpu_affinity(), os.getsid(process.pid))
            (directory,) = tmp_path.glob("gpt_parallel-*")
            seen["mode"] = directory.stat().st_mode & 0o777

    suite._on_phase = look
    suite.run(suite.spec("tensor_data_hybrid", 2))

    assert seen.pop("mode") == 0o700
    assert list(tmp_path.iterdir()) == []
    assert len(seen) == 2
    for pid, (addresses, cores, session) in seen.items():
        assert addresses <= {"127.0.0.1", "::1"}
        assert len(cores) == 1
        assert session == pid
    if len(os.sched_getaffinity(0)) > 1:
        assert len({tuple(cores) for _, cores, _ in seen.values()}) == 2


def test_ranks_never_import_transformers(suite, monkeypatch, tmp_path):
    """A module of that name that cannot be imported does no harm."""
    (tmp_path / "transformers.py").write_text("raise SystemExit('transformers was imported')")
    monkeypatch.syspath_prepend(tmp_path)

    assert suite.run(suite.spec("pure_data_parallel", 1)).outputs


def test_memory_is_a_rank_s_own_whatever_its_launcher_holds():
    """A child inherits its parent's ru_maxrss."""
    code = """
from gpt_parallel.launch import fork_server
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite
fork_server.AVAILABLE = False
ballast = bytearray(b"x" * 2**30)
suite = Suite(make_settings("smoke", {"num_iterations": 1, "device": "cpu", "verify": False}))
print(suite.run(suite.spec("pure_data_parallel", 1)).ranks[0].peak_memory_bytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert 10 * 2**20 < int(done.stdout) < 2**30, done.stderr


def test_what_a_killed_launcher_left_is_removed_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, strange, elsewhere = (tmp_path / f"gpt_parallel-run-{name}" for name in ("left", "strange", "elsewhere"))
    for path in (left, strange, elsewhere):
        path.mkdir()
    with run_directory() as used:
        (left / "lock").write_bytes((used / "lock").read_bytes())
    (elsewhere / "lock").write_text("another host")

    with run_directory() as used, run_directory() as other:
        assert sorted(tmp_path.iterdir()) == sorted([used, other, strange, elsewhere])
        assert used.stat().st_mode & 0o777 == 0o700

    assert sorted(tmp_path.iterdir()) == sorted([strange, elsewhere])


def test_cores_are_dealt_in_slices_and_shared_when_they_run_out():
    assert [cores_of(rank, 2, (4, 5, 6, 7)) for rank in range(3)] == [[4, 5], [6, 7], [4, 5]]
    assert cores_of(1, 8, (0, 3)) == [0, 3]
