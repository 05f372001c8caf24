"""Two commits side by side. The commits are of a small repository whose one case takes as long as it says."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from statistics import stdev

import pytest
from typer.testing import CliRunner

from gpt_parallel.bench import ab, worktrees
from gpt_parallel.bench.ab import AbBlock, judge
from gpt_parallel.cli import app
from gpt_parallel.report.compare.verdicts import Rules, Verdict
from gpt_parallel.report.saved_run import load_run
from tests.support import warm
from tests.support.factories import bench, document, stats, summary
from tests.support.processes import environment, heed_ctrl_c

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
import pathlib, signal, sys, tempfile
import pytest

@pytest.mark.parametrize("run", [0])
def test_case(benchmark, run):
    with tempfile.TemporaryDirectory():  # as a launch has one
        here = pathlib.Path(__file__).parent
        (here.parent / "waiting").touch()  # beside the worktree
        try:
            signal.pause()
        finally:
            (pathlib.Path(tempfile.gettempdir()).parent / "cleaned").touch()
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
    return warm.run([*command(*arguments), "--", "test_case.py"], cwd=repository, env=environment())


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


@pytest.mark.slow
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
        (("base", "nowhere"), "error: no such commit 'nowhere'\n"),
        (("nowhere", "base"), "error: no such commit 'nowhere'\n"),
        (("base", "slow", "--threshold", "5"), "must be a percentage"),
        (("base", "slow", "--blocks", "2"), "at least 3"),
        (("base", "slow", "--threshold", "slowly"), "must be a percentage"),
        (("base", "slow", "--", "absent.py"), "pytest ended with code 4"),
    ],
)
def test_wrong_usage_is_said_and_leaves_nothing(arguments, message, repository):
    done = warm.run(command(*arguments), cwd=repository)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert untouched(repository)


def test_outside_a_repository_is_said(tmp_path):
    done = warm.run(command("a", "b"), cwd=tmp_path)

    assert done.returncode == 2
    assert "not a git repository" in done.stderr


@pytest.mark.parametrize(
    ("signal_number", "at_start"),
    [
        (signal.SIGINT, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
        pytest.param(signal.SIGTERM, signal.SIG_IGN, id="background job"),
    ],
)
def test_ctrl_c_removes_the_worktrees_and_what_the_launch_wrote(
    signal_number, at_start, repository, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with subprocess.Popen(
        [*command("hangs", "base"), "--", "test_case.py", "-s"],
        cwd=repository,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, at_start),
    ) as process:
        try:
            assert process.stderr.readline().startswith("[1/6] base")
            wait_for(lambda: list(temporary.glob("gpt_parallel-ab-*/waiting")))
            process.send_signal(signal_number)
            process.wait(60)
        finally:
            process.kill()
        rest = process.stderr.read()

    assert process.returncode == 130
    assert "interrupted" in rest
    assert (tmp_path / "cleaned").exists(), "pytest had its time to leave in order"
    assert untouched(repository)
    assert list(temporary.iterdir()) == []


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_launch_that_ignores_ctrl_c_is_killed(repository, tmp_path, monkeypatch):
    monkeypatch.setattr(ab, "_STOP_WAIT_S", 0.2)
    deaf = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        ab._stop(process)

    assert process.returncode == -signal.SIGKILL


def test_ctrl_c_while_git_makes_the_worktree_leaves_none(repository, tmp_path, monkeypatch):
    """Killed in the middle, git leaves a registration that is locked, and perhaps half a directory."""
    run_git = worktrees._git

    def interrupted(directory, *arguments):
        printed = run_git(directory, *arguments)
        if arguments[:2] == ("worktree", "add"):
            (tree,) = tmp_path.glob("temporary/*/base")
            (tree / ".git").unlink()
            (repository / ".git/worktrees/base/locked").write_text("initializing")
            raise KeyboardInterrupt
        return printed

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(worktrees, "_git", interrupted)
    monkeypatch.chdir(repository)

    with pytest.raises(KeyboardInterrupt):
        ab.run_ab("base", "slow", [], num_blocks=3, threshold=0.03, log=print)

    assert untouched(repository)
    assert list(temporary.iterdir()) == []


def test_ctrl_c_of_a_terminal_does_not_reach_git(repository, tmp_path, monkeypatch):
    """It goes to all processes of the group, and would kill a git that is just removing a worktree."""
    temporary, programs, begun, go_on = (tmp_path / name for name in ("temporary", "programs", "begun", "go_on"))
    temporary.mkdir()
    programs.mkdir()
    os.mkfifo(go_on)
    pipe = os.open(go_on, os.O_RDWR)
    wait = f"""case "$*" in *"worktree remove"*) touch '{begun}'; read line < '{go_on}';; esac"""
    (programs / "git").write_text(f"#!/bin/sh\n{wait}\nexec '{shutil.which('git')}' \"$@\"\n")
    (programs / "git").chmod(0o755)
    with subprocess.Popen(
        command("base", "slow"),
        cwd=repository,
        env=environment(TMPDIR=str(temporary), PATH=f"{programs}{os.pathsep}{os.environ['PATH']}"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        try:
            assert process.stderr.readline().startswith("[1/6] base")
            os.killpg(process.pid, signal.SIGINT)
            wait_for(begun.exists)
            os.killpg(process.pid, signal.SIGINT)
            os.write(pipe, b"\n" * 10)
            process.wait(60)
        finally:
            process.kill()
            os.close(pipe)
        printed = process.stderr.read()

    assert process.returncode == 130, printed
    assert untouched(repository)
    assert not (repository / ".git" / "worktrees").exists()
    assert list(temporary.iterdir()) == []


def test_only_our_own_leftovers_are_cleared(repository, tmp_path):
    """A worktree that is not there may be on a disk that is not mounted now."""
    ours, theirs = tmp_path / "gpt_parallel-ab-xyz" / "base", tmp_path / "removable" / "feature"
    used = tmp_path / "gpt_parallel-ab-running" / "head"
    for path in (ours, theirs, used):
        git(repository, "worktree", "add", "--detach", path, "base")
    for path in (ours, theirs):
        path.rename(path.with_name("elsewhere"))

    run_ab(repository, "base", "nowhere")
    assert len(git(repository, "worktree", "list").splitlines()) == 4, (
        "nothing is touched before both commits are known"
    )
    run_ab(repository, "base", "broken", "--blocks", 3)

    left = git(repository, "worktree", "list", "--porcelain")
    assert str(ours) not in left
    assert str(theirs) in left
    assert str(used) in left


@pytest.fixture
def fake_launches(repository, tmp_path, monkeypatch):
    """Has run_ab take these times, over and over, for base and head instead of running pytest; counts the launches."""
    launches = []

    def use(*times):
        sides = {"base": cycle([base for base, _ in times]), "head": cycle([head for _, head in times])}

        def launch(tree, arguments, output):
            launches.append(tree.name)
            output.write_text(json.dumps(document(bench() | {"stats": stats([next(sides[tree.name])])})))
            return load_run(output)

        monkeypatch.setattr(ab, "_run_pytest", launch)
        monkeypatch.chdir(repository)
        return launches

    return use


def test_a_doubt_that_stays_is_given_up_after_three_looks(fake_launches):
    launches = fake_launches((1, 1.3), (1.3, 1))

    done = CliRunner().invoke(app, ["ab", "base", "same", "--blocks", "4"])

    assert done.exit_code == 3
    assert len(launches) == 2 * 3 * 4
    assert "would tell" in done.stdout
    assert done.stderr.count("inconclusive after") == 2


def test_the_default_threshold_is_three_per_cent(fake_launches):
    fake_launches((1, 1.05), (1, 1.051))

    assert CliRunner().invoke(app, ["ab", "base", "same"]).exit_code == 1
    fake_launches((1, 1.02), (1, 1.021))
    assert CliRunner().invoke(app, ["ab", "base", "same"]).exit_code == 0


def test_an_unforeseen_error_is_not_taken_for_a_slowdown(fake_launches, monkeypatch):
    fake_launches((1, 1))
    monkeypatch.setattr(ab, "judge", lambda *_: {}["absent"])

    done = CliRunner().invoke(app, ["ab", "base", "same", "--blocks", "3"])

    assert done.exit_code == 2
    assert "error: unexpected KeyError: 'absent'" in done.stderr


def blocks(tmp_path, ratios, names=("case",), not_run=None, **changes):
    """Blocks whose heads are so many times slower: a number for all cases, or one each."""
    made = []
    for index, of_block in enumerate(ratios):
        slower = of_block if isinstance(of_block, tuple) else len(names) * (of_block,)
        sides = []
        for side in ("base", "head"):
            entries = [
                bench(name, **(changes if side == "head" else {}))
                | {"stats": stats([ratio if side == "head" else 1.0])}
                for name, ratio in zip(names, slower, strict=True)
            ]
            failed = {"not_run": (not_run or {}).get((index, side), [])}
            path = tmp_path / f"{index}-{side}.json"
            path.write_text(json.dumps(document(*entries, gpt_parallel=failed)))
            sides.append(load_run(path))
        made.append(AbBlock(*sides))
    return made


def deviating(count, deviation, slowdown):
    """Ratios around a slowdown whose logarithms have exactly this standard deviation."""
    steps = [index - (count - 1) / 2 for index in range(count)]
    return [slowdown * math.exp(step * deviation / stdev(steps)) for step in steps]


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


def test_three_looks_are_three_chances_to_err(tmp_path):
    """p = 0.02 would do for a single look."""
    result = judge(blocks(tmp_path, deviating(6, 0.045, 1.051)), Rules(threshold=0.03))

    assert 0.017 < result.verdicts[0].p_value < 0.025
    assert result.verdict == Verdict.INCONCLUSIVE


def test_nine_cases_are_nine_chances_to_err(tmp_path):
    """p = 0.01 would do for a single case."""
    slowed = deviating(6, 0.036, 1.051)
    alone = judge(blocks(tmp_path, slowed), Rules(threshold=0.03))
    steady = [(ratio, *8 * (1.0 + index / 1000,)) for index, ratio in enumerate(slowed)]
    together = judge(blocks(tmp_path, steady, tuple("abcdefghi")), Rules(threshold=0.03))

    assert 0.005 < alone.verdicts[0].p_value < 0.0166
    assert alone.verdict == Verdict.FAIL
    assert together.verdict == Verdict.INCONCLUSIVE


@pytest.mark.parametrize(("slowdown", "verdict"), [(1.055, Verdict.FAIL), (1.01, Verdict.PASS)])
def test_the_number_of_blocks_that_would_tell_does_tell(slowdown, verdict, tmp_path):
    def judged(count):
        ratios = deviating(count, 0.06, slowdown)
        return judge(blocks(tmp_path, [(ratio, 1.0) for ratio in ratios], ("a", "b")), Rules(threshold=0.03))

    first = judged(6).verdicts[0]
    needed = int(first.reason.split("about ")[1].split()[0])

    assert first.verdict == Verdict.INCONCLUSIVE
    assert needed < 200
    assert judged(needed).verdicts[0].verdict == verdict


@pytest.mark.parametrize("side", ["base", "head"])
def test_a_case_that_fails_without_a_timing_anywhere_is_an_error(side, tmp_path):
    failed = {(1, side): [{"case": "test_generation[b]", "outcome": "failed", "reason": "rank 1 was killed"}]}
    skipped = {(1, side): [{"case": "test_generation[b]", "outcome": "skipped", "reason": "needs 8 GPUs"}]}

    result = judge(blocks(tmp_path, (1.0, 1.0, 1.0), not_run=failed), Rules())

    assert result.verdict == Verdict.ERROR
    assert f"failed at {side} in block 2: rank 1 was killed" in [entry.reason for entry in result.verdicts]
    assert judge(blocks(tmp_path, (1.0, 1.0, 1.0), not_run=skipped), Rules()).verdict == Verdict.PASS


def test_another_torch_is_told(tmp_path):
    result = judge(blocks(tmp_path, (1.0, 1.0, 1.0), torch="2.14"), Rules())

    assert result.notes == ["base and head differ in torch: 2.13.0+cpu and 2.14"]
