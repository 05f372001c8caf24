"""Starting, watching and stopping real ranks."""

import os
import time
from pathlib import Path

import psutil
import pytest

from gpt_parallel.launch import local
from gpt_parallel.launch.local import LaunchError, cores_of
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite
from tests import mutants

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def suite():
    return Suite(make_settings("smoke", {"num_iterations": 2, "device": "cpu", "verify": False}))


@pytest.fixture
def mutate(monkeypatch):
    def mutate(mutant):
        monkeypatch.setattr(local, "WORKER", "tests.mutants")
        monkeypatch.setenv(mutants.VARIABLE, mutant.__name__)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))

    return mutate


def ranks_alive():
    """Rank processes that this test process started."""
    return [child for child in psutil.Process().children(recursive=True) if "worker" in " ".join(child.cmdline())]


def run_and_time_failure(suite, strategy="pure_data_parallel"):
    """The error of a two-rank run, and seconds from the last phase any rank entered to the error."""
    entered = []
    suite._on_phase = lambda rank, phase: entered.append(time.monotonic())
    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec(strategy, 2))
    return str(failure.value), time.monotonic() - entered[-1]


@pytest.mark.parametrize("strategy", ["pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid"])
def test_a_killed_rank_is_named_at_once_and_the_next_run_passes(suite, mutate, monkeypatch, strategy):
    mutate(mutants.kill_rank_1_while_generating)
    message, delay_s = run_and_time_failure(suite, strategy)
    monkeypatch.undo()

    assert message.startswith("rank 1 killed by signal 9 (SIGKILL; out-of-memory killer?) in phase ")
    assert delay_s < 5
    assert ranks_alive() == []
    assert suite.run(suite.spec(strategy, 2)).figures.throughput_tok_s > 0


def test_a_raising_rank_is_reported_with_phase_and_traceback(suite, mutate):
    mutate(mutants.raise_on_rank_1_while_loading)

    message, delay_s = run_and_time_failure(suite, "tensor_data_hybrid")

    assert message.startswith("rank 1 failed in phase 'load weights': ArithmeticError: the weights are off today")
    assert "in broken" in message
    assert delay_s < 5
    assert ranks_alive() == []


def test_exiting_well_without_a_result_is_a_failure(suite, mutate):
    mutate(mutants.exit_on_rank_1_without_a_result)

    message, _ = run_and_time_failure(suite)

    # Rank 0 may lose its peer first, but the rank that went away is the one to name.
    assert message.startswith("rank 1 exited without delivering a result")


def test_a_hanging_rank_meets_the_deadline(mutate):
    mutate(mutants.hang_on_rank_1)
    suite = Suite(make_settings("smoke", {"num_iterations": 1, "device": "cpu", "verify": False, "timeout_s": 8}))

    with pytest.raises(LaunchError, match=r"did not finish within 8 s: rank 0 was in phase .*; rank 1 was in phase "):
        suite.run(suite.spec("pure_data_parallel", 2))

    assert ranks_alive() == []


def test_an_interrupt_stops_all_ranks(suite):
    def interrupt(rank, phase):
        if phase == "load weights":
            raise KeyboardInterrupt

    suite._on_phase = interrupt
    with pytest.raises(KeyboardInterrupt):
        suite.run(suite.spec("tensor_data_hybrid", 2))

    assert ranks_alive() == []


def test_ranks_see_a_clean_environment_and_private_files(suite, monkeypatch, tmp_path):
    """Stale launcher variables do not reach ranks; the run directory is private and goes away; loopback only."""
    monkeypatch.setenv("MASTER_ADDR", "stale.example")
    monkeypatch.setenv("WORLD_SIZE", "77")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    seen = {}

    def look(rank, phase):
        if phase.startswith("round 1") and rank == 1:
            for process in ranks_alive():
                environment = process.environ()
                addresses = {c.laddr.ip for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
                seen[environment["RANK"]] = (environment, addresses, process.cpu_affinity())
            (directory,) = tmp_path.glob("gpt_parallel-*")
            seen["mode"] = directory.stat().st_mode & 0o777

    suite._on_phase = look
    suite.run(suite.spec("tensor_data_hybrid", 2))

    assert seen["mode"] == 0o700
    assert list(tmp_path.iterdir()) == []
    for rank in ("0", "1"):
        environment, addresses, cores = seen[rank]
        assert environment["WORLD_SIZE"] == "2"
        assert "MASTER_ADDR" not in environment
        assert environment["OMP_NUM_THREADS"] == "1"
        assert addresses <= {"127.0.0.1", "::1"}
        assert len(cores) == 1
    if len(os.sched_getaffinity(0)) > 1:
        assert seen["0"][2] != seen["1"][2]


def test_ranks_never_import_transformers(suite, monkeypatch, tmp_path):
    """A module of that name that cannot be imported does no harm."""
    (tmp_path / "transformers.py").write_text("raise SystemExit('transformers was imported')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert suite.run(suite.spec("pure_data_parallel", 1)).outputs


def test_cores_are_dealt_in_slices_and_shared_when_they_run_out():
    assert [cores_of(rank, 2, (4, 5, 6, 7)) for rank in range(3)] == [[4, 5], [6, 7], [4, 5]]
    assert cores_of(1, 8, (0, 3)) == [0, 3]
