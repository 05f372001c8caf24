"""Runs that a launcher starts: real processes of this machine, started as srun, mpirun and torchrun would."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.claims import claim_cores
from gpt_parallel.launch.cluster import assignment as hiring
from gpt_parallel.launch.devices import available_cores
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.fault import FaultSpec
from tests.support.paths import ROOT
from tests.support.processes import ranks_alive, title

STARTER = f"{sys.executable} {ROOT / 'tests/support/starter.py'}"
TORCHRUN = "torchrun --standalone --nproc-per-node={num_gpus}"
HERE = "127.0.0.1:0"


@pytest.fixture
def make_suite(tmp_path):
    made = []

    def make(launcher, fault=None, **settings):
        given = {"num_iterations": 1, "device": "cpu", "launcher_address": HERE, "log_dir": str(tmp_path / "logs")}
        given |= {"launcher": launcher, **settings}
        made.append(Suite(make_settings("smoke", given), fault=FaultSpec.parse(fault) if fault else None))
        return made[-1]

    yield make
    for suite in made:
        if "external" in vars(suite.runner):
            suite.runner.external.close()


@pytest.mark.parametrize("kind", ["srun", "mpirun"])
def test_a_case_is_run_and_verified(make_suite, kind):
    suite = make_suite(f"{STARTER} {kind} {{num_gpus}}")
    titles = set()

    def look(rank, phase):
        if phase == "round 1 of 1":
            titles.update(title(process) for process in ranks_alive())

    suite.runner.on_phase = look
    result = suite.run(suite.spec("tensor_data_hybrid", 2))

    assert result.verification.status == "exact"
    assert result.spec.execution.backend == "gloo"
    assert [rank.place.host for rank in result.ranks] == [socket.gethostname()] * 2
    assert [rank.place.rank for rank in result.ranks] == [0, 1]
    assert titles == {f"gpt_parallel: tensor_data_hybrid-2gpu rank {rank}/2" for rank in (0, 1)}
    if len(os.sched_getaffinity(0)) > 1:  # srun has bound each rank to one
        assert len({rank.place.cores for rank in result.ranks}) == 2
        assert not result.spec.execution.oversubscribed
    assert 0 < result.figures.ttft_s < result.figures.latency_s < max(result.figures.round_seconds) + 1
    assert ranks_alive() == []


def test_a_lone_rank_needs_no_others(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}")

    assert suite.run(suite.spec("pure_data_parallel", 1)).verification.status == "exact"


def test_oversubscribed_machines_are_marked(make_suite):
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

    assert "ended, or its machine was cut off, without delivering a result in phase '" in str(failure.value)
    assert "logs of all ranks: " in str(failure.value)
    assert ranks_alive() == []
    assert suite.run(suite.spec("tensor_data_hybrid", 2)).outputs


def test_a_stopped_rank_is_named_at_the_deadline_and_does_not_outlive_it(make_suite):
    """torchrun's ranks lead sessions of their own, and one that is stopped heeds neither SIGTERM nor a lost line."""
    suite = make_suite(TORCHRUN, fault="round:1:sigstop", verify=False, timeout_s=15)

    with pytest.raises(LaunchError) as failure:
        suite.run(suite.spec("tensor_data_hybrid", 2))

    head, _, stacks = str(failure.value).partition("\n")
    host = socket.gethostname()
    assert re.search(
        rf"did not finish within 15 s: rank 0 on {host} was in phase '[a-z0-9 ]+'; rank 1 on {host} ", head
    )
    assert f"rank 1 on {host} was in phase 'round 1 of 1', stopped by a signal (" in head
    assert head.count("stopped by") == 1
    assert stacks.count(f" on {host}, most recent call first:") == 2, "it was let go on to tell"
    assert ranks_alive() == []


def test_a_launcher_that_ends_is_the_error_with_what_it_printed(make_suite):
    suite = make_suite("sh -c 'echo no nodes today; exit 7'", verify=False)

    with pytest.raises(LaunchError, match=r"(?s)launcher 'sh' ended with code 7; 0 of 2 ranks.*\n  no nodes today"):
        suite.run(suite.spec("pure_data_parallel", 2))


def test_a_launcher_that_ends_badly_after_all_results_fails_the_run(make_suite):
    suite = make_suite(f"sh -c '{STARTER} \"$@\"; echo rank 0: core dumped; exit 3' sh srun {{num_gpus}}", verify=False)

    with pytest.raises(
        LaunchError, match=r"(?s)results, but the launcher 'sh' ended with code 3.*\n  rank 0: core dum"
    ):
        suite.run(suite.spec("pure_data_parallel", 1))


def test_a_launcher_that_cannot_be_started_is_told_and_followers_are_stopped(make_suite, tmp_path):
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\nread forever < /dev/zero\n")
    launcher.chmod(0o755)
    suite = make_suite(str(launcher), verify=False, timeout_s=1)
    spec = suite.spec("pure_data_parallel", 2)
    with socket.create_connection(address_of(suite), timeout=10) as follower, follower.makefile("rw") as lines:
        lines.write('{"follow": "two"}\n')
        lines.flush()
        with pytest.raises(LaunchError, match=r"did not start within 1 s: 0 of 2 ranks have reported at 127.0.0.1:\d+"):
            suite.run(spec)
        launcher.write_text("\0")
        with pytest.raises(LaunchError, match=r"the launcher '.*launcher' cannot be started: Exec format error"):
            suite.run(spec)
        orders = [json.loads(lines.readline()) for _ in range(4)]

    names = [order["start"] for order in orders[::2]]
    assert [order["stop"] for order in orders[1::2]] == names
    assert len(set(names)) == 2


def test_a_launcher_of_this_machine_is_given_cores_that_others_have_not_claimed(make_suite, tmp_path):
    cores = available_cores()
    if len(cores) < 2:
        pytest.skip("needs two cores")
    launcher = tmp_path / "torchrun"
    launcher.write_text("#!/bin/sh\ngrep Cpus_allowed_list /proc/self/status; exit 7\n")
    launcher.chmod(0o755)
    waiting, refusing = (
        make_suite(f"{launcher} --nproc-per-node={{num_gpus}}", verify=False, when_busy=policy)
        for policy in ("wait", "refuse")
    )
    spec = waiting.spec("pure_data_parallel", 1)

    with claim_cores(cores, len(cores) - 1, "wait", lambda text: None) as taken:
        (left,) = set(cores) - set(taken.cores)
        with pytest.raises(LaunchError, match=rf"Cpus_allowed_list:\s+{left}\n"):
            waiting.run(spec)
        with (
            claim_cores([left], 1, "wait", lambda text: None),
            pytest.raises(SpecError, match="other runs of gpt_para"),
        ):
            refusing.run(spec)


def test_a_launcher_that_starts_too_many_is_told_so(make_suite):
    suite = make_suite(f"{STARTER} srun 2", verify=False)

    with pytest.raises(LaunchError, match="the launcher started 2 ranks, but the case needs 1"):
        suite.run(suite.spec("pure_data_parallel", 1))
    assert ranks_alive() == []


def address_of(suite):
    host, _, port = suite.runner.external._listener.address.rpartition(":")
    return host, int(port)


def test_strangers_at_the_door_do_no_harm(make_suite):
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False)
    spec = suite.spec("pure_data_parallel", 2)
    silent = socket.create_connection(address_of(suite))
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\n",
        b"[" * 60_000 + b"\n",
        b"{}\n",
        b'{"run": "other"}\n',
        b"x" * 99_999,
    ):
        with socket.create_connection(address_of(suite)) as stranger, contextlib.suppress(OSError):
            stranger.sendall(words)

    with silent:
        assert suite.run(spec).outputs


def test_a_rank_of_another_version_is_refused(make_suite, monkeypatch):
    monkeypatch.setattr(hiring, "__version__", "9.9")
    suite = make_suite(f"{STARTER} srun {{num_gpus}}", verify=False)

    with pytest.raises(LaunchError, match=r"gpt_parallel is 9\.9 here and .* on .*; install one version"):
        suite.run(suite.spec("pure_data_parallel", 1))


def test_ranks_end_when_the_one_that_wanted_them_is_killed():
    code = """
import sys, psutil
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.bench.suite import Suite
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


def test_a_worker_that_nobody_wants_says_so_in_a_line():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    words = [sys.executable, "-m", "gpt_parallel", "worker", f"127.0.0.1:{port}", "run"]
    variables = os.environ | {"SLURM_PROCID": "0"}
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert done.stderr == f"gpt-parallel worker: no run at 127.0.0.1:{port} wants this rank (Connection refused)\n"
