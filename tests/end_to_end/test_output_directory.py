"""Directories that are full, read-only or gone: one clear line, an exit code, and what was there before still whole."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_parallel.report import render
from gpt_parallel.report.render import write_report
from gpt_parallel.report.saved_run import ReportError, load_run
from tests.support.factories import bench, document
from tests.support.halting import CHARTLESS, benchmarks, halting, journal, report, run

GPT_PARALLEL = str(Path(sys.executable).parent / "gpt-parallel")
CLI_SMOKE = ("--preset", "smoke", "--device", "cpu", "--num-iterations", "1")
UNSHARE = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-r", "-m")


@pytest.fixture
def on_small_disk(tmp_path):
    """on_small_disk(size, *commands) runs them with a file system of that size at `disk`; a copy of it in `left`.

    Commands are joined by a shell; `{disk}` in them is the directory.
    """
    disk, left = tmp_path / "disk", tmp_path / "left"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size={{}} none {shlex.quote(str(disk))}"
    tried = subprocess.run([*UNSHARE, "sh", "-c", mount.format("4k")], capture_output=True, text=True, timeout=20)
    if tried.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {tried.stderr.strip()}")

    def on_small_disk(size, *commands):
        script = "\n".join(
            [f"{mount.format(size)} || exit 99", *commands, "code=$?", f"cp -a {disk} {left}", "exit $code"]
        )
        done = run([*UNSHARE, "sh", "-c", script.replace("{disk}", str(disk))])
        return done, left

    return on_small_disk


def session(*arguments):
    return shlex.join(benchmarks("{disk}", *arguments))


def older(*names):
    """A command that leaves files of an earlier session."""
    return "mkdir -p {disk}/charts; " + "; ".join(f"echo older >{{disk}}/{name}" for name in names)


OLDER = ("benchmarks.json", "report.md", "report.html", "charts/throughput.png", "performance_summary.csv")


def assert_older_files_are_whole(directory):
    for name in OLDER:
        assert (directory / name).read_text() == "older\n"
    assert not [path for path in directory.rglob(".*") if path.is_file()], "nothing half-written"


def test_a_full_disk_stops_the_session_at_the_case_it_cannot_keep(on_small_disk):
    done, left = on_small_disk("40k", older(*OLDER), session("-k", "2gpu or 1gpu"))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "session.jsonl: can no longer be written (No space left on device); stopped" in done.stdout
    assert "REPORT NOT WRITTEN" in done.stdout
    assert "INCOMPLETE: gpt_parallel: journal" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    kept = journal(left)
    assert 1 <= len(kept) < 5
    assert {outcome for _, outcome in kept} == {"passed"}
    assert f"{len(kept) + 1} passed" in done.stdout
    assert_older_files_are_whole(left)


def test_a_disk_without_room_for_the_report_fails_the_session_and_resuming_writes_it(on_small_disk):
    done, left = on_small_disk(
        "200k",
        older(*OLDER),
        session("-k", "1gpu"),
        'echo "FIRST $?"; cp -a {disk} {disk}/../first; mount -o remount,size=20m {disk}',
        session("-k", "1gpu", "--gpt-resume"),
    )

    first, _, second = done.stdout.partition("FIRST 1\n")
    assert second, done.stdout + done.stderr
    assert "report directory" in first
    assert "cannot be written (No space left on device)" in first
    assert_older_files_are_whole(left.parent / "first")
    assert journal(left.parent / "first") == [("test_generation[pure_data_parallel-1gpu]", "passed")]
    assert done.returncode == 0, second
    assert "1 of 1 cases come from" in second
    assert "Benchmark report" in (left / "report.md").read_text()


def test_a_read_only_directory_is_a_usage_error_before_any_rank(on_small_disk):
    done, left = on_small_disk("1m", older(*OLDER), "mount -o remount,ro {disk}", session("-k", "1gpu"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "disk/session.jsonl: cannot be written (Read-only file system)" in done.stderr
    assert "--gpt-report DIR" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert_older_files_are_whole(left)


def test_a_directory_that_vanishes_stops_the_session_and_the_report_is_written_anew(tmp_path):
    command = benchmarks(tmp_path / "r", "-k", "pure", "-p", "tests.support.mutants")
    with halting(command, "2:round 1 of 1", tmp_path) as stopped:
        stopped.wait()
        shutil.rmtree(tmp_path / "r")
        stopped.go_on()
        code, printed = stopped.end()

    assert code == 1, printed
    assert "session.jsonl: can no longer be written (No such file or directory); stopped" in printed
    names, ours = report(tmp_path / "r")
    assert names == [f"test_generation[pure_data_parallel-{count}gpu]" for count in (1, 2)], "what was in memory"
    assert [entry["outcome"] for entry in ours["not_run"]] == ["not reached"]


def test_a_full_disk_under_pytest_benchmarks_own_file_is_one_line(on_small_disk, tmp_path):
    command = benchmarks(tmp_path / "r", "-k", "1gpu", *CHARTLESS, "--benchmark-json", "{disk}/b.json")

    done, _ = on_small_disk("4k", shlex.join(command))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "a file of this session was not written: [Errno 28] No space left on device" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert report(tmp_path / "r")[0] == ["test_generation[pure_data_parallel-1gpu]"]


def test_a_run_on_a_full_disk_shows_its_figures_and_keeps_the_older_result(on_small_disk):
    command = [GPT_PARALLEL, "run", *CLI_SMOKE, "--strategy", "pure_data_parallel", "--num-gpus", "1"]

    done, left = on_small_disk("8k", "echo older >{disk}/result.json", shlex.join([*command, "--output-dir", "{disk}"]))

    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert "result.json: cannot be written (No space left on device)" in done.stderr
    assert "tokens/s" in done.stdout
    assert {path.name: path.read_text() for path in left.iterdir()} == {"result.previous.json": "older\n"}


@pytest.mark.parametrize(("size", "remount"), [("64k", "true"), ("1m", "mount -o remount,ro {disk}")])
def test_the_report_command_on_a_disk_that_takes_nothing(size, remount, on_small_disk, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(document(bench())))
    command = shlex.join([GPT_PARALLEL, "report", str(tmp_path / "run.json"), "--output-dir", "{disk}"])

    done, left = on_small_disk(size, older(*OLDER), remount, command)

    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert_older_files_are_whole(left)


def test_a_report_that_fails_half_way_changes_no_file(tmp_path, monkeypatch):
    (tmp_path / "run.json").write_text(json.dumps(document(bench())))
    saved = load_run(tmp_path / "run.json")
    write_report([saved], tmp_path / "r")
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}

    def full(template, context):
        if "html" in template:
            raise OSError(28, "No space left on device")
        return "new"

    monkeypatch.setattr(render, "_render", full)
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([saved], tmp_path / "r")

    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
