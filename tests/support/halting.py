"""Sessions that stand still where a test wants them, so that something can happen to them there.

As a pytest plugin (`-p tests.support.halting`) it gives one case a deadline of pytest-timeout's.
"""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from tests.support import warm
from tests.support.mutants import HALT, PHASE, VARIABLE
from tests.support.paths import ROOT
from tests.support.processes import environment, heed_ctrl_c

SMOKE = ("--gpt-preset", "smoke", "--gpt-device", "cpu", "--gpt-num-iterations", "1")
LIMITED = "GPT_PARALLEL_TEST_LIMITED"  # "PART OF A CASE'S NAME:SECONDS:METHOD"
_DEADLINE_S = 180
CHARTLESS = ("-p", "tests.support.without_charts")


def pytest_collection_modifyitems(items):
    case, seconds, method = os.environ[LIMITED].split(":")
    for item in items:
        if case in item.name:
            item.add_marker(pytest.mark.timeout(float(seconds), method=method), append=False)


def benchmarks(directory, *arguments):
    """The command of a small session of the real benchmarks, with its report in the directory."""
    command = (sys.executable, "-m", "pytest", "benchmarks", "-p", "no:cacheprovider", *SMOKE)
    return [*command, "--gpt-report", str(directory), *map(str, arguments)]


def run(command, **variables):
    """A session warm and without charts, whatever else cold."""
    if _is_session(command):
        return warm.run([*command, *CHARTLESS], cwd=ROOT, env=environment(**variables), timeout=_DEADLINE_S)
    return subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=_DEADLINE_S
    )


def _is_session(command):
    return command[:3] == [sys.executable, "-m", "pytest"]


class Halting:
    """A running process with its ranks; one of them stands still after `wait`."""

    def __init__(self, process, pipe):
        self.process, self._pipe = process, pipe
        self.ranks, self.pid = [], None

    def wait(self):
        """Until a rank stands still."""
        readable, _, _ = select.select([self._pipe], [], [], _DEADLINE_S)
        assert readable, "no rank came there"
        self.pid = int(os.read(self._pipe, 100))
        self.ranks = psutil.Process(self.process.pid).children(recursive=True)
        assert len(self.ranks) >= 2, "the server and a rank"

    def go_on(self):
        os.kill(self.pid, signal.SIGUSR2)

    def end(self):
        """The exit code and all that was printed; nothing of it lives on."""
        printed, _ = self.process.communicate(timeout=_DEADLINE_S)
        _, alive = psutil.wait_procs(self.ranks, timeout=5)
        assert not alive
        return self.process.returncode, printed


@contextmanager
def halting(command, phase, tmp_path, **variables):
    """Start a command whose first rank that enters the phase ("NUMBER OF RANKS:PHASE") stands still there."""
    path = tmp_path / "halt"
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR)
    mutant = {VARIABLE: "halt_in_a_phase", PHASE: phase, HALT: str(path), "PYTHONPATH": str(ROOT)}
    with _start(command, environment(**mutant, **variables)) as process:
        try:
            yield Halting(process, pipe)
        finally:
            os.close(pipe)
            process.kill()
            process.communicate()


def _start(command, variables):
    if _is_session(command):
        return warm.Command([*command, *CHARTLESS], env=variables, merged=True)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=variables, preexec_fn=heed_ctrl_c, **streams)


def journal(directory):
    """The journal's cases in their order, as (name, outcome)."""
    lines = [json.loads(line) for line in (directory / "session.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "session"
    return [(line["case"].rpartition("::")[2], line["outcome"]) for line in lines if line["kind"] == "case"]


def report(directory):
    """The names of the timed cases, and what is said beside them."""
    document = json.loads((directory / "benchmarks.json").read_text())
    return [bench["name"] for bench in document["benchmarks"]], document["gpt_parallel"]
