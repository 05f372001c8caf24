"""Two commits side by side. The commits are of a small repository whose one case takes as long as it says."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_parallel.ab import Block, judge
from gpt_parallel.report.gate import Rules, Verdict
from gpt_parallel.report.load import load_run
from tests.factories import bench, document, stats, summary
from tests.processes import environment

CASE = """
import itertools, json, pathlib
import pytest

here = pathlib.Path(__file__).parent
clock = itertools.count(1).__next__

def now():
    return clock() * float((here / "seconds").read_text())

@pytest.mark.benchmark(timer=now)
def test_case(benchmark):
    with (here.parent / "order").open("a") as order:  # beside the worktree: one place for both commits
        order.write(here.name + " ")
    benchmark.extra_info.update(json.loads((here / "row.json").read_text()))
    benchmark.pedantic(lambda: None, rounds=3)
"""
HANGING = """
import signal

def test_case(benchmark):
    print("waiting", flush=True)
    signal.pause()
"""


def git(repository, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", repository, *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """Tags: `base` and `same` take 1 s a round, `slow` 1.5 s; the others' case is `renamed`, `broken` or `hangs`."""
    directory = tmp_path / "repository"
    directory.mkdir()
    git(directory, "init", "--quiet")
    (directory / "row.json").write_text(json.dumps(summary().model_dump(mode="json")))
    (directory / "pytest.ini").write_text("[pytest]\n")
    commits = {"base": ("1", CASE), "same": ("1", CASE + "\n"), "slow": ("1.5", CASE)}
    commits |= {
        "renamed": ("1", CASE.replace("test_case(", "test_other(")),
        "broken": ("1", CASE.replace("with (", "assert False\n    with (")),
        "hangs": ("1", HANGING),
    }
    for tag, (seconds, case) in commits.items():
        (directory / "seconds").write_text(seconds)
        (directory / "test_case.py").write_text(case)
        git(directory, "add", ".")
        git(directory, "commit", "--quiet", "--message", tag)
        git(directory, "tag", tag)
    git(directory, "checkout", "--quiet", "base")
    (directory / "seconds").write_text("99")  # a change that is nobody's business
    return directory


def command(*arguments):
    return [str(Path(sys.executable).with_name("gpt-parallel")), "ab", *map(str, arguments)]


def run_ab(repository, *arguments):
    return subprocess.run(
        [*command(*arguments), "--", "test_case.py"],
        cwd=repository,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


def untouched(repository):
    return (
        git(repository, "status", "--porcelain") == "M seconds"
        and (repository / "seconds").read_text() == "99"
        and len(git(repository, "worktree", "list").splitlines()) == 1
    )


def test_a_slower_commit_is_found_and_the_same_one_passes(repository):
    slow = run_ab(repository, "base", "slow", "--blocks", 3)
    same = run_ab(repository, "base", "same", "--blocks", 3)

    assert slow.returncode == 1, slow.stderr
    assert "FAIL" in slow.stdout
    assert "50.0% worse" in slow.stdout
    assert same.returncode == 0, same.stderr
    assert [line.split()[1] for line in same.stderr.splitlines()] == ["base", "head", "head", "base", "base", "head"]
    assert untouched(repository)


def test_a_case_that_does_not_run_at_one_commit_is_no_pass(repository):
    renamed = run_ab(repository, "base", "renamed", "--blocks", 3)
    broken = run_ab(repository, "base", "broken", "--blocks", 3)

    assert renamed.returncode == broken.returncode == 2
    assert "missing at head in block 1" in renamed.stdout
    assert "missing at base in block 1" in renamed.stdout
    assert "no benchmarks in head" in broken.stderr
    assert "assert False" in broken.stderr
    assert untouched(repository)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("base", "nowhere"), "nowhere"),
        (("base", "slow", "--blocks", "2"), "at least 3"),
        (("base", "slow", "--threshold", "slowly"), "must be a percentage"),
        (("base", "slow", "--", "absent.py"), "pytest ended with code 4"),
    ],
)
def test_wrong_usage_is_said_and_leaves_nothing(arguments, message, repository):
    done = subprocess.run(command(*arguments), cwd=repository, capture_output=True, text=True, timeout=100)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert untouched(repository)


def test_outside_a_repository_is_said(tmp_path):
    done = subprocess.run(command("a", "b"), cwd=tmp_path, capture_output=True, text=True, timeout=100)

    assert done.returncode == 2
    assert "not a git repository" in done.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_removes_the_worktrees(signal_number, repository, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with subprocess.Popen(
        [*command("hangs", "base"), "--", "test_case.py", "-s"], cwd=repository, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline().startswith("[1/6] base")
        process.send_signal(signal_number)
        rest = process.stderr.read()

    assert process.returncode == 130
    assert "interrupted" in rest
    assert untouched(repository)
    assert list((tmp_path / "temporary").iterdir()) == []


def blocks(tmp_path, ratios, **changes):
    """Blocks whose head is so many times slower."""
    made = []
    for index, ratio in enumerate(ratios):
        sides = []
        for name, seconds in (("base", 1.0), ("head", ratio)):
            entry = bench(**(changes if name == "head" else {})) | {"stats": stats([seconds])}
            path = tmp_path / f"{index}-{name}.json"
            path.write_text(json.dumps(document(entry)))
            sides.append(load_run(path))
        made.append(Block(*sides))
    return made


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((1.0, 1.01, 0.99, 1.0), Verdict.PASS),
        ((1.2, 1.21, 1.19, 1.2), Verdict.FAIL),
        ((1.02, 1.021, 1.019, 1.02), Verdict.PASS),
        ((0.7, 1.5, 1.1, 0.9), Verdict.INCONCLUSIVE),
    ],
)
def test_verdict_is_over_blocks(ratios, verdict, tmp_path):
    assert judge(blocks(tmp_path, ratios), Rules(threshold=0.03)).verdict == verdict


def test_what_cannot_be_compared_is_an_error(tmp_path):
    assert judge(blocks(tmp_path, (1.0, 1.0, 1.0), verified="skipped"), Rules()).verdict == Verdict.ERROR
    assert judge([], Rules()).verdict == Verdict.ERROR
