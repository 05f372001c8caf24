"""Progress tells what runs and never breaks pytest's own output."""

import os
import pty
import re

import pytest

from gpt_parallel.bench.progress import CaseProgress
from tests.support import warm
from tests.support.factories import run_spec
from tests.support.paths import ROOT
from tests.support.processes import environment

COMMAND = (
    *(warm.PYTEST, "benchmarks", "-k", "1gpu", "-p", "no:cacheprovider", "--gpt-no-report"),
    *("--gpt-preset", "smoke", "--gpt-device", "cpu", "--gpt-num-iterations", "2"),
)


def test_rounds_tell_the_tokens_per_second_so_far(monkeypatch):
    shown, clock = [], iter([10.0, 12.0, 13.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = CaseProgress(shown.append)

    progress(0, "import")
    progress.start(run_spec())
    for phase in ("load weights", "round 1 of 3", "round 2 of 3", "round 3 of 3"):
        progress(0, phase)
        progress(1, phase)

    assert shown == [
        "import",
        "pure_data_parallel-1gpu: load weights",
        "pure_data_parallel-1gpu: round 1 of 3",
        "pure_data_parallel-1gpu: round 2 of 3, 2 tokens/s",
        "pure_data_parallel-1gpu: round 3 of 3, 2 tokens/s",
    ]


def test_a_log_does_not_get_a_line_for_each_of_many_rounds(monkeypatch):
    shown, clock = [], iter([10.0, 12.0, 19.0, 20.0, 21.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = CaseProgress(shown.append, every_s=10.0)

    for number in range(1, 6):
        progress(0, f"round {number} of 5")
    progress(0, "finish")

    assert shown == ["round 1 of 5", "round 4 of 5, 0 tokens/s", "finish"]


def test_another_launch_has_a_first_round_and_a_rate_of_its_own(monkeypatch):
    shown, clock = [], iter([10.0, 12.0, 50.0, 51.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    progress = CaseProgress(shown.append)
    progress.start(run_spec())

    for phase in ("round 1 of 2", "round 2 of 2", "finish", "start", "round 1 of 2", "round 2 of 2"):
        progress(0, phase)

    assert [text.partition(": ")[2] for text in shown] == [
        *("round 1 of 2", "round 2 of 2, 2 tokens/s", "finish", "start"),
        *("round 1 of 2", "round 2 of 2, 3 tokens/s"),
    ]


def on_a_terminal(*arguments):
    """What pytest writes when its output is a terminal."""
    leader, follower = pty.openpty()
    variables = environment(TERM="xterm", COLUMNS="120")
    with warm.Command([*COMMAND, *arguments], env=variables, output=follower, merged=True) as process:
        os.close(follower)
        written = b""
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the other side is closed
                break
            written += data
        os.close(leader)
        process.wait(30)
    assert process.returncode == 0, written.decode(errors="replace")
    return written.decode(errors="replace")


@pytest.mark.parametrize("arguments", [(), ("-s",)], ids=["captured", "uncaptured"])
def test_on_a_terminal_the_line_is_taken_back_and_the_dots_stay_whole(arguments):
    written = on_a_terminal(*arguments)

    assert "\x1b7 pure_data_parallel-1gpu: round 2 of 2, " in written
    assert " tokens/s\x1b[K\x1b8" in written
    kept = re.sub(r"\x1b7.*?\x1b8|\x1b\[[0-9;]*[mK]", "", written)
    assert re.search(r"benchmarks/test_generation\.py \.\s", kept), kept


def test_a_log_has_a_line_per_phase_with_v_and_none_otherwise():
    def run(*arguments):
        done = warm.run([*COMMAND, *arguments], cwd=ROOT, env=environment())
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()

    lines = run("-v")
    assert "pure_data_parallel-1gpu: load weights" in lines
    assert "pure_data_parallel-1gpu: round 1 of 2" in lines
    assert not any(line.startswith("pure_data_parallel-1gpu: ") for line in run())


def test_quiet_is_quiet_on_a_terminal_too():
    assert "load weights" not in on_a_terminal("-q")
