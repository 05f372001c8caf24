"""Runs across two machines, each with its own network, name and clock: torchrun's agents, a cable, and a cut."""

import json
import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.support.machines import CannotMakeThemError, TwoMachines
from tests.support.paths import ROOT
from tests.support.processes import MARK, TITLE, environment

TORCHRUN = "torchrun --nnodes=2 --nproc-per-node={} --rdzv-backend=c10d --rdzv-endpoint=one:29400"
COMMAND = [sys.executable, "-m", "gpt_parallel"]


def is_titled_rank(words):
    """Whether a command line is a rank's title; the test process has a server of ranks of its own."""
    title = " ".join(words)
    return title.startswith(TITLE) and " rank " in title.removeprefix(TITLE)


class Session:
    """A session on machine "one" that machine "two" joins."""

    def __init__(self, machines, stack, directory):
        self._machines, self._stack, self._directory = machines, stack, directory
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._options = {"env": environment(PATH=path, TMPDIR=str(directory)), "text": True}

    def start(self, *words, ranks_each=2, **options):
        launcher = TORCHRUN.format(ranks_each)
        self.joined = self._start(self._machines.two, *COMMAND, "join", "one:29401", "--launcher", launcher)
        option = "--gpt-launcher" if "pytest" in words else "--launcher"
        return self._start(self._machines.one, *words, option, launcher, f"{option}-address", "one:29401")

    def _start(self, machine, *words):
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(machine.command(*words, directory=ROOT), **streams, **self._options)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process

    def ranks(self):
        """Those of either machine."""
        found = []
        for process in psutil.process_iter():
            try:
                is_rank = "gpt_parallel.engine.process.cluster_worker" in (words := process.cmdline())
                if (is_rank or is_titled_rank(words)) and process.environ().get(MARK) == os.environ[MARK]:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def machines(tmp_path):
    try:
        made = TwoMachines(tmp_path).__enter__()
    except CannotMakeThemError as error:
        pytest.skip(f"two machines cannot be made here: {error}")
    yield made
    made.__exit__()


@pytest.fixture
def session(machines, tmp_path):
    with ExitStack() as stack:
        yield Session(machines, stack, tmp_path)


def test_the_four_device_cases_run_across_and_are_verified(session, tmp_path):
    saved = tmp_path / "saved.json"
    options = ["--gpt-preset", "smoke", "--gpt-device", "cpu", "--gpt-num-iterations", "1", "--gpt-no-report"]

    process = session.start(
        *(sys.executable, "-m", "pytest", "benchmarks", *options),
        *("-p", "no:cacheprovider", "--benchmark-json", saved),
    )
    printed, _ = process.communicate(timeout=200)

    assert process.returncode == 0, printed
    assert session.joined.wait(30) == 0
    cases = [entry["extra_info"] for entry in json.loads(saved.read_text())["benchmarks"]]
    assert [(case["mesh"], case["verified"], case["num_hosts"]) for case in cases] == [
        ("dp4", "exact", 2),
        ("dp2·tp2", "exact", 2),
        ("pp2·dp2", "exact", 2),
        ("pp2·tp2", "exact", 2),
    ]
    for case in cases:  # "two" has a clock of its own, an hour and a half ahead
        assert 0 < case["ttft_s"] < case["latency_s"] < case["launches"][0]["round_seconds"][0] + 1


@pytest.mark.slow
def test_tensor_shards_stay_on_a_machine_and_results_tell_where_ranks_ran(session, tmp_path):
    process = session.start(
        *(*COMMAND, "run", "--preset", "smoke", "--device", "cpu", "--strategy", "full_model_parallel"),
        *("--num-gpus", "4", "--num-iterations", "1", "--output-dir", tmp_path / "out"),
    )
    printed, _ = process.communicate(timeout=100)

    assert process.returncode == 0, printed
    ranks = json.loads((tmp_path / "out" / "result.json").read_text())["ranks"]
    assert [(rank["stage"], rank["shard"], rank["host"]) for rank in ranks] in (
        [(0, 0, "one"), (0, 1, "one"), (1, 0, "two"), (1, 1, "two")],
        [(0, 0, "two"), (0, 1, "two"), (1, 0, "one"), (1, 1, "one")],
    )


def test_a_cut_cable_fails_the_case_within_its_deadline(session, machines, tmp_path):
    process = session.start(
        *(*COMMAND, "run", "--preset", "smoke", "--device", "cpu", "--strategy", "full_model_parallel"),
        *("--num-gpus", "4", "--num-iterations", "100000", "--timeout", "90", "--output-dir", tmp_path / "out"),
        *("--log-dir", tmp_path / "logs"),
    )
    for line in process.stdout:
        if "round 1 of" in line:
            break
    machines.cut()
    printed, _ = process.communicate(timeout=100)

    assert process.returncode == 1
    assert re.search(
        r"error: rank \d on two ended, or its machine was cut off, without delivering a result in", printed
    )
    assert "did not finish within" not in printed
    assert not (tmp_path / "out" / "result.json").exists()
    _, left = psutil.wait_procs(session.ranks(), timeout=30)
    assert left == []


@pytest.mark.slow
def test_tensor_shards_that_would_talk_across_are_refused(session, tmp_path):
    process = session.start(
        *(*COMMAND, "run", "--preset", "smoke", "--device", "cpu", "--strategy", "tensor_data_hybrid"),
        *("--num-gpus", "2", "--output-dir", tmp_path / "out", "--log-dir", tmp_path / "logs"),
        ranks_each=1,
    )
    printed, _ = process.communicate(timeout=100)

    assert process.returncode == 1
    assert "tensor parallelism of 2 must stay inside a machine, but the ranks are distributed as 1 on " in printed


def test_nobody_to_join_is_told(machines):
    words = machines.two.command(*COMMAND, "join", "one:29401", "--launcher", "torchrun --nnodes=2", "--wait", "0")
    done = subprocess.run(words, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "one:29401: no session to join within 0 s" in done.stderr
