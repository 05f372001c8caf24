"""Sessions that end early: what was finished is kept, what is missing is said, and nothing lives on."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from gpt_parallel.bench.journal import Finished, Journal, make_header
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper
from tests.support.factories import run_result, run_spec
from tests.support.halting import SMOKE, benchmarks, halting, journal, report, run
from tests.support.paths import ROOT

ONE, TWO, FOUR = (f"test_generation[pure_data_parallel-{count}gpu]" for count in (1, 2, 4))
RARE = ("connect", "load weights", "finish")
PHASES = ("start", "connect", "load weights", "generate for verification", "round 1 of 1", "finish")
CLI = "from tests.support import mutants; mutants.pytest_configure(); from gpt_parallel.cli import main; main()"
CLI_SMOKE = ("--preset", "smoke", "--device", "cpu", "--num-iterations", "1", "--strategy", "pure_data_parallel")


def pure_cases(directory, *arguments):
    """One, two and four ranks, in this order; the first makes the reference too."""
    return benchmarks(directory, "-k", "pure", *arguments)


def interrupt(session):
    """Ctrl-C by somebody impatient: twice, and when the ranks are gone again and again until the end."""
    session.process.send_signal(signal.SIGINT)
    session.process.send_signal(signal.SIGINT)
    psutil.wait_procs([rank for rank in session.ranks if rank.pid == session.pid], timeout=30)
    for _ in range(3000):
        session.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            session.process.wait(timeout=0.01)
            break


def test_ctrl_c_while_files_are_written_cuts_none_of_them_short(tmp_path):
    """pytest-benchmark's file is a pipe here, which shows when it is written, and keeps it waiting."""
    os.mkfifo(tmp_path / "b.json")
    command = pure_cases(tmp_path / "r", "-p", "tests.support.mutants", "--benchmark-json", tmp_path / "b.json")
    with halting(command, "2:round 1 of 1", tmp_path) as session:
        session.wait()
        session.process.send_signal(signal.SIGINT)
        with (tmp_path / "b.json").open() as pipe:
            session.process.send_signal(signal.SIGINT)
            document = json.load(pipe)
        code, printed = session.end()

    assert code == 2, printed
    assert "Traceback" not in printed
    assert document["gpt_parallel"]["incomplete"] == "interrupted"
    assert "INCOMPLETE: interrupted; 2 of 3 cases were not reached." in printed


@pytest.mark.parametrize("phase", [pytest.param(each, marks=[pytest.mark.slow] * (each in RARE)) for each in PHASES])
def test_ctrl_c_in_any_phase_keeps_what_is_finished(phase, tmp_path):
    command = pure_cases(tmp_path / "r", "-p", "tests.support.mutants", "--benchmark-json", tmp_path / "b.json")
    with halting(command, f"2:{phase}", tmp_path) as session:
        session.wait()
        interrupt(session)
        code, printed = session.end()

    assert code == 2, printed
    assert "INCOMPLETE: interrupted; 2 of 3 cases were not reached." in printed
    assert "Traceback" not in printed
    assert journal(tmp_path / "r") == [(ONE, "passed")]
    names, ours = report(tmp_path / "r")
    assert names == [ONE]
    assert ours["incomplete"] == "interrupted"
    assert [(entry["case"], entry["outcome"]) for entry in ours["not_run"]] == [
        (TWO, "not reached"),
        (FOUR, "not reached"),
    ]
    for name in ("report.md", "report.html", "performance_report.txt"):
        assert "INCOMPLETE: interrupted; 2 of 3 cases were not reached." in (tmp_path / "r" / name).read_text()
    assert json.loads((tmp_path / "b.json").read_text())["gpt_parallel"] == ours


def test_one_signal_is_enough_and_resuming_goes_on(tmp_path):
    with halting(pure_cases(tmp_path / "r", "-p", "tests.support.mutants"), "2:round 1 of 1", tmp_path) as session:
        session.wait()
        session.process.send_signal(signal.SIGTERM)  # as a scheduler does; Ctrl-C in the test above
        code, printed = session.end()
    assert code == 2, printed
    before = (tmp_path / "r" / "session.jsonl").read_bytes()
    (first,) = json.loads((tmp_path / "r" / "benchmarks.json").read_text())["benchmarks"]

    done = run(pure_cases(tmp_path / "r", "--gpt-resume", "--benchmark-json", tmp_path / "b.json"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming {tmp_path / 'r' / 'session.jsonl'}, which has 1 of 3 cases" in done.stdout
    assert "1 of 3 cases come from an earlier session and were not launched again" in done.stdout
    assert (tmp_path / "r" / "session.jsonl").read_bytes().startswith(before)
    assert journal(tmp_path / "r") == [(ONE, "passed"), (TWO, "passed"), (FOUR, "passed")]
    names, ours = report(tmp_path / "r")
    assert names == [ONE, TWO, FOUR]
    assert ours == {"not_run": [], "resumed": [ONE]}
    assert "INCOMPLETE" not in done.stdout + (tmp_path / "r" / "report.md").read_text()
    again = json.loads((tmp_path / "r" / "benchmarks.json").read_text())["benchmarks"][0]
    assert again == first, "not one figure differs"
    timed = json.loads((tmp_path / "b.json").read_text())["benchmarks"][0]
    assert timed["stats"]["data"] == first["stats"]["data"]
    assert timed["extra_info"] == first["extra_info"]

    all_there = run(pure_cases(tmp_path / "r", "--gpt-resume"))
    assert "3 of 3 cases come from" in all_there.stdout
    assert report(tmp_path / "r")[0] == [ONE, TWO, FOUR]


def test_ctrl_c_in_the_reference_run(tmp_path):
    """Nothing is finished yet, and there is no report to write: an older one stays."""
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "report.md").write_text("older")
    with halting(pure_cases(tmp_path / "r", "-p", "tests.support.mutants"), "1:load weights", tmp_path) as session:
        session.wait()
        interrupt(session)
        code, printed = session.end()

    assert code == 2, printed
    assert "INCOMPLETE: interrupted; 3 of 3 cases were not reached." in printed
    assert journal(tmp_path / "r") == []
    assert (tmp_path / "r" / "report.md").read_text() == "older"
    assert not (tmp_path / "r" / "benchmarks.json").exists()


@pytest.mark.parametrize("phase", ["1:start", "2:generate for verification", "2:finish"])
def test_ctrl_c_on_a_run(phase, tmp_path):
    command = [sys.executable, "-c", CLI, "run", *CLI_SMOKE, "--num-gpus", "2", "--output-dir", str(tmp_path / "r")]
    with halting(command, phase, tmp_path) as session:
        session.wait()
        interrupt(session)
        code, printed = session.end()

    assert code == 130, printed
    assert "interrupted; all ranks were stopped, and no file is half-written" in printed
    assert "Traceback" not in printed
    assert list((tmp_path / "r").iterdir()) == []


def test_a_killed_session_is_gone_on_with_or_put_aside(tmp_path):
    with halting(pure_cases(tmp_path / "r", "-p", "tests.support.mutants"), "2:round 1 of 1", tmp_path) as session:
        session.wait()
        session.process.kill()
        session.end()
    left = (tmp_path / "r" / "session.jsonl").read_bytes()

    done = run(benchmarks(tmp_path / "r", "-k", "pure and 2gpu"))

    assert done.returncode == 0, done.stdout + done.stderr
    aside = tmp_path / "r" / "session.previous.jsonl"
    assert f"the journal of an unfinished session (finished cases: 1) is now {aside}; --gpt-resume would" in done.stdout
    assert aside.read_bytes() == left
    assert journal(tmp_path / "r") == [(TWO, "passed")]

    again = run(benchmarks(tmp_path / "r", "-k", "pure and 1gpu"))
    assert "unfinished session" not in again.stdout, "that one did"
    assert aside.read_bytes() == left


def test_a_session_that_asks_for_something_else_is_not_gone_on_with(tmp_path):
    done = run(benchmarks(tmp_path, "-k", "1gpu", "--gpt-resume"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 of 1 cases come from" in done.stdout
    header_and_case = (tmp_path / "session.jsonl").read_bytes().splitlines(keepends=True)[:2]
    (tmp_path / "session.jsonl").write_bytes(b"".join(header_and_case))  # as if it had been interrupted

    refused = run(benchmarks(tmp_path, "-k", "1gpu", "--gpt-resume", "--gpt-batch-size", "1", "--gpt-seed", "3"))

    assert refused.returncode == pytest.ExitCode.USAGE_ERROR
    assert "batch_size was 2 and is 1; seed was 0 and is 3" in refused.stderr
    assert "Traceback" not in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense\n", "session.jsonl:1: not valid JSON"),
        (b'{"kind": "other"}\n', "session.jsonl is not a session journal"),
        (b'{"kind": "session", "schema_version": 1}\n', "session.jsonl:1: settings: is missing"),
    ],
)
def test_a_malformed_journal_is_named_and_left_alone(content, message, tmp_path):
    (tmp_path / "session.jsonl").write_bytes(content)

    done = run(benchmarks(tmp_path, "-k", "1gpu", "--gpt-resume"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert (tmp_path / "session.jsonl").read_bytes() == content


def test_two_sessions_do_not_write_one_directory(tmp_path):
    header = make_header(make_settings("smoke", {}))
    with Journal(tmp_path / "session.jsonl", header, resume=False, keep_as=tmp_path / "kept.jsonl"):
        done = run(benchmarks(tmp_path, "-k", "1gpu"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"{tmp_path / 'session.jsonl'}: another pytest session is writing it" in done.stderr
    assert "--gpt-report DIR" in done.stderr


@pytest.mark.parametrize("other", ["--gpt-no-report", "--benchmark-disable"])
def test_without_a_journal_there_is_nothing_to_resume(other, tmp_path):
    done = run(benchmarks(tmp_path, "--gpt-resume", other))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--gpt-resume continues a journal, but {other} keeps none" in done.stderr


@pytest.mark.parametrize("arguments", [("--collect-only",), ("--benchmark-disable",), ("--gpt-no-report",)])
def test_sessions_that_time_nothing_or_report_nothing_leave_nothing(arguments, tmp_path):
    done = run(benchmarks(tmp_path / "r", "-k", "1gpu", *arguments))

    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_case_that_is_other_work_now_is_launched_again(tmp_path):
    """The settings are the same, but the user's own test asks for another mesh under its old name."""
    test = tmp_path / "test_mine.py"
    command = [sys.executable, "-m", "pytest", "test_mine.py", "-p", "no:cacheprovider", *SMOKE, "--gpt-resume"]
    meshes = []
    for strategy in ("pure_data_parallel", "tensor_data_hybrid"):
        test.write_text(f"def test_mine(gpt_case):\n    gpt_case('{strategy}', 2)\n")
        done = run(["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path), *command], PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stdout + done.stderr
        (bench,) = json.loads((tmp_path / "reports/latest/benchmarks.json").read_text())["benchmarks"]
        meshes.append(bench["extra_info"]["mesh"])

    assert meshes == ["dp2", "tp2"]
    assert "which has 1 of 1 cases" in done.stdout
    assert "0 of 1 cases come from an earlier session" in done.stdout
    lines = (tmp_path / "reports/latest/session.jsonl").read_text().splitlines()
    kept = [json.loads(line)["results"][0]["spec"]["mesh"] for line in lines if '"kind": "case"' in line]
    assert [mesh["tp"] for mesh in kept] == [1, 2], "the new one counts from now on"


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [({}, True), ({"oversubscribed": True}, True), ({"log_dir": "elsewhere"}, True), ({"warmup": 2}, False)],
)
def test_what_ranks_found_out_of_their_machine_makes_no_other_work(changes, is_same, tmp_path):
    planned = run_spec()
    found = planned.with_execution(**changes)
    settings = make_settings("smoke", {})
    path = tmp_path / "session.jsonl"
    with Journal(path, make_header(settings), resume=False, keep_as=tmp_path / "kept.jsonl") as kept:
        kept.add(Finished(case="t.py::t", outcome="passed", results=(run_result(found),)))
    keeper, case = SessionKeeper(settings, tmp_path), SimpleNamespace(nodeid="t.py::t", name="t")
    keeper.begin([case], resume=True)

    replayed = keeper.replay(case, planned)

    assert list(replayed) == ([run_result(found)] if is_same else [])
    assert keeper.record.resumed == (["t"] if is_same else [])
