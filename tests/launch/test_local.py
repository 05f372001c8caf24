"""Starting, watching and stopping real ranks."""

import os
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from gpt_parallel.launch import fork_server, local
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.run_directory import run_directory
from tests.support import mutants

pytestmark = pytest.mark.usefixtures("users_server")


def test_a_failed_run_s_logs_are_kept(make_suite, tmp_path):
    suite = make_suite("load:1:raise", log_dir=str(tmp_path / "logs"))

    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec("pure_data_parallel", 2))

    (directory,) = (tmp_path / "logs").iterdir()
    assert f"logs of all ranks: {directory}" in str(failure.value)
    assert " s  connect\n" in (directory / "rank_0.log").read_text()
    assert "RuntimeError: injected error" in (directory / "rank_1.log").read_text()


def test_the_logs_of_a_missed_deadline_have_the_stacks(make_suite, tmp_path):
    suite = make_suite("load:1:hang", log_dir=str(tmp_path / "logs"), timeout_s=5)

    with pytest.raises(LaunchError, match="did not finish within 5 s"):
        suite.run(suite.spec("pure_data_parallel", 2))

    (log,) = (tmp_path / "logs").glob("*/rank_1.log")
    assert "faults.py" in log.read_text()


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize("told", ["", "it was here"])
def test_a_rank_that_has_ended_is_not_waited_for_to_show_its_stack(monkeypatch, tmp_path, told, reaped):
    monkeypatch.setattr(local, "_STACKS_S", 60.0)
    monkeypatch.setattr(local.time, "sleep", lambda seconds: pytest.fail("it waits"))
    (tmp_path / "stacks").write_text(told)

    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            ended.wait()
        process = SimpleNamespace(pid=ended.pid, poll=lambda: None)

        assert local.LocalProcess(process, tmp_path / "stacks").read_stacks() == told


def test_an_interrupt_stops_all_ranks(suite, ranks_alive):
    def interrupt(rank, phase):
        if phase == "load weights":
            raise KeyboardInterrupt

    suite.runner.on_phase = interrupt
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

    suite.runner.on_phase = look
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
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.bench.suite import Suite
fork_server.AVAILABLE = False
ballast = bytearray(b"x" * 2**30)
suite = Suite(make_settings("smoke", {"num_iterations": 1, "device": "cpu", "verify": False}))
print(suite.run(suite.spec("pure_data_parallel", 1)).ranks[0].diagnostics.peak_memory_bytes)
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
