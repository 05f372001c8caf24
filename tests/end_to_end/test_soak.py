"""A session that is killed again and again loses nothing that it had finished."""

import json
import random
import signal
import subprocess
import time
from contextlib import suppress

import psutil
import pytest

from gpt_parallel.report.saved_run import load_run
from tests.support.halting import benchmarks, run
from tests.support.paths import ROOT
from tests.support.processes import TITLE, environment

NUM_KILLS, SEED = 100, 20
CASES = ("-k", "not 4gpu")


class Soak:
    """Sessions on one directory after another, and what has been seen finished in the present one."""

    def __init__(self, tmp_path):
        self._random = random.Random(SEED)
        self._tmp_path = tmp_path
        self.temporary = tmp_path / "tmp"
        self.temporary.mkdir()
        self.kills = {"pytest": 0, "server": 0, "rank": 0}
        self.num_completed = 0
        self._start_over()

    def _start_over(self):
        self._directory = self._tmp_path / f"reports-{self.num_completed}"
        self._seen = b""

    def session(self):
        """One session from its start to its end, which we may bring about."""
        command = benchmarks(self._directory, *CASES, "--gpt-resume")
        variables = environment(TMPDIR=str(self.temporary))
        with (self._tmp_path / "printed").open("w+") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None and sum(self.kills.values()) < NUM_KILLS:
                    self._kill_at_some_time(process)
                    self._check()
                process.wait(100)
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            printed = output.read()
        assert process.returncode in (0, 1, -signal.SIGKILL), printed
        self._check()
        if process.returncode == 0:
            self._check_completed()
            self.num_completed += 1
            self._start_over()

    def _kill_at_some_time(self, process):
        """One of pytest, the server and the ranks, a while after it is there; most often when ranks are."""
        (who,) = self._random.choices(list(self.kills), weights=(1, 1, 2))
        awaited = "rank" if who == "pytest" and self._random.random() < 0.8 else who
        delay = self._random.uniform(0, 1.5)
        while process.poll() is None and not find(process.pid)[awaited]:
            time.sleep(0.02)
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        found = find(process.pid)
        if process.poll() is not None or not found[who]:
            return
        with suppress(psutil.NoSuchProcess):  # it was quicker
            self._random.choice(found[who]).kill()
            self.kills[who] += 1
        if who == "pytest":
            process.wait(5)
            for kind, seconds in (("rank", 5), ("server", 60)):  # a server may still be importing torch
                _, alive = psutil.wait_procs(found[kind], timeout=seconds)
                assert not alive

    def _check(self):
        """What was finished is still there, byte for byte, and a report is whole or not there."""
        path = self._directory / "session.jsonl"
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        assert whole.startswith(self._seen)
        self._seen = whole
        for line in whole.splitlines():
            json.loads(line)
        if (self._directory / "benchmarks.json").exists():
            load_run(self._directory / "benchmarks.json")
        page = self._directory / "report.html"
        assert not page.exists() or page.read_text().endswith("</html>\n")

    def _check_completed(self):
        cells = [line["cell"] for line in map(json.loads, self._seen.splitlines()) if line.get("outcome") == "passed"]
        saved = load_run(self._directory / "benchmarks.json")
        assert {case.fullname for case in saved.cases} == set(cells)
        assert len(cells) == len(set(cells)) == 5
        assert not saved.not_run


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_nothing_finished_is_lost_in_a_hundred_kills(tmp_path):
    begin = time.monotonic()
    soak = Soak(tmp_path)
    while sum(soak.kills.values()) < NUM_KILLS:
        soak.session()
    print(f"{soak.kills}, {soak.num_completed} sessions completed, {time.monotonic() - begin:.0f} s")
    assert min(soak.kills.values()) >= 10
    assert soak.num_completed >= 1

    last = run(benchmarks(tmp_path / "last", "-k", "1gpu"), TMPDIR=str(soak.temporary))

    assert last.returncode == 0, last.stdout + last.stderr
    assert [path.name for path in soak.temporary.iterdir()] == []
    assert not [process for process in psutil.process_iter() if is_ours(process, soak.temporary)]


def find(pid):
    """The processes of a session, by kind."""
    found = {"pytest": [], "server": [], "rank": []}
    with suppress(psutil.Error):
        found["pytest"].append(psutil.Process(pid))
        for child in found["pytest"][0].children():
            if f"{TITLE}rank server" in " ".join(child.cmdline()):
                found["server"].append(child)
                found["rank"] += child.children()
    return found


def is_ours(process, temporary):
    with suppress(psutil.Error):
        return process.environ().get("TMPDIR") == str(temporary)
    return False
