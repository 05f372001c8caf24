"""Other pytest options and plugins that end cases or sessions, or take away what this one needs."""

import subprocess
import sys

import pytest

from tests.support.halting import LIMITED, SMOKE, benchmarks, halting, journal, report, run
from tests.support.mutants import VARIABLE
from tests.support.paths import ROOT
from tests.support.processes import environment

FAILING = {VARIABLE: "raise_on_rank_1_while_loading", "PYTHONPATH": str(ROOT)}
ONE, TWO, FOUR = (f"test_generation[pure_data_parallel-{count}gpu]" for count in (1, 2, 4))


def limited(tmp_path, method):
    """Three cases, of which the second stands still and has a deadline of pytest-timeout's."""
    command = benchmarks(tmp_path / "r", "-k", "pure", "-p", "tests.support.mutants", "-p", "tests.support.halting")
    return halting(command, "2:round 1 of 1", tmp_path, **{LIMITED: f"pure_data_parallel-2gpu:8:{method}"})


def test_a_case_that_pytest_timeout_ends_fails_alone(tmp_path):
    with limited(tmp_path, "signal") as session:
        session.wait()
        titles = {" ".join(process.cmdline()).strip() for process in session.ranks}
        code, printed = session.end()

    assert code == 1, printed
    ranks = {f"gpt_parallel: pure_data_parallel-2gpu rank {rank}/2" for rank in (0, 1)}
    assert titles == {"gpt_parallel: rank server", *ranks}, "what ps, top and nvidia-smi show"
    assert "Timeout (>8.0s) from pytest-timeout" in printed
    assert "1 failed, 2 passed" in printed
    assert journal(tmp_path / "r") == [(ONE, "passed"), (TWO, "failed"), (FOUR, "passed")]
    names, ours = report(tmp_path / "r")
    assert names == [ONE, FOUR]
    assert [(entry["case"], entry["outcome"]) for entry in ours["not_run"]] == [(TWO, "failed")]
    assert "incomplete" not in ours


def test_a_session_that_pytest_timeout_ends_leaves_no_rank_and_can_be_resumed(tmp_path):
    """The thread method ends the whole process at once."""
    with limited(tmp_path, "thread") as session:
        session.wait()
        code, printed = session.end()
    assert code == 1, printed
    assert "Timeout" in printed
    assert journal(tmp_path / "r") == [(ONE, "passed")]

    done = run(benchmarks(tmp_path / "r", "-k", "pure", "--gpt-resume"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 3 cases come from" in done.stdout
    assert report(tmp_path / "r") == ([ONE, TWO, FOUR], {"not_run": [], "resumed": [ONE]})


@pytest.mark.parametrize(
    ("option", "reason", "outcomes"),
    [
        ("-x", "stopped after 1 failures", ["failed", *["not reached"] * 3]),
        ("--maxfail=2", "stopped after 2 failures", ["failed", "failed", *["not reached"] * 2]),
        pytest.param(
            *("--stepwise", "Test failed, continuing from this test next run.", ["failed", *["not reached"] * 3]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_session_that_stops_at_failures_says_what_it_left_out(option, reason, outcomes, tmp_path):
    command = benchmarks(tmp_path / "r", "-k", "not 4gpu", "-p", "tests.support.mutants", option)
    if option == "--stepwise":  # it keeps its place in the cache
        command[command.index("no:cacheprovider")] = "cacheprovider"
        command += ["-o", f"cache_dir={tmp_path / 'cache'}"]

    done = run(command, **FAILING)

    assert done.returncode in (1, 2), done.stdout + done.stderr
    count = outcomes.count("not reached")
    assert f"INCOMPLETE: {reason}; {count} of 5 cases were not reached." in done.stdout
    names, ours = report(tmp_path / "r")
    assert names == [ONE]
    assert ours["incomplete"] == reason
    assert [entry["outcome"] for entry in ours["not_run"]] == outcomes


@pytest.mark.slow
def test_failed_cases_are_launched_again_when_resumed(tmp_path):
    failing = run(benchmarks(tmp_path, "-k", "pure and not 4gpu", "-p", "tests.support.mutants"), **FAILING)
    assert failing.returncode == 1, failing.stdout + failing.stderr
    assert "INCOMPLETE" not in failing.stdout, "all were reached"
    assert journal(tmp_path) == [(ONE, "passed"), (TWO, "failed")]

    done = run(benchmarks(tmp_path, "-k", "pure and not 4gpu", "--gpt-resume"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 2 cases come from" in done.stdout
    assert report(tmp_path)[0] == [ONE, TWO]


@pytest.mark.slow
def test_a_session_that_a_test_ends_is_marked(tmp_path):
    """Whatever exit code it asks for, for which pytest prints no summary."""
    (tmp_path / "test_mine.py").write_text(
        "import pytest\n\n"
        "def test_a(gpt_case):\n    gpt_case('pure_data_parallel', 1)\n\n"
        "def test_b():\n    pytest.exit('enough for today', returncode=7)\n\n"
        "def test_c(gpt_case):\n    gpt_case('pure_data_parallel', 1)\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_mine.py"), "-p", "no:cacheprovider", *SMOKE]

    done = run([*command, "--gpt-report", str(tmp_path / "r")])

    assert done.returncode == 7
    assert "INCOMPLETE: enough for today; 1 of 2 cases was not reached." in done.stdout
    assert report(tmp_path / "r")[0] == ["test_a"]


def test_without_pytest_benchmark_cases_say_what_they_need(tmp_path):
    done = run(benchmarks(tmp_path / "r", "-p", "no:benchmark"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert done.stderr.count("needs pytest-benchmark") == 1
    assert "-p no:benchmark" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "r").exists()


def test_without_pytest_benchmark_other_tests_run(tmp_path):
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")

    done = run([sys.executable, "-m", "pytest", str(tmp_path), "-p", "no:benchmark", "-p", "no:cacheprovider", *SMOKE])

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_timing_under_xdist_is_refused_and_leaves_an_older_journal_alone(tmp_path):
    (tmp_path / "session.jsonl").write_text("older")

    done = run(benchmarks(tmp_path, "-n", "2"))

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "cases cannot be timed side by side with pytest-xdist" in done.stderr
    assert (tmp_path / "session.jsonl").read_text() == "older"


def test_a_mark_on_the_command_line_wins_over_the_one_that_leaves_slow_tests_out(tmp_path):
    def collected(*arguments):
        printed = run([sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments])
        return [line for line in printed.stdout.splitlines() if "::" in line]

    assert collected("tests/end_to_end/test_soak.py") == []
    assert len(collected("tests/end_to_end/test_soak.py", "-m", "slow")) == 1
    assert len(collected("benchmarks", "-m", "gpus(n=4)")) == 4


OTHERS = ("-p", "tests.support.other_plugins")


def test_plugins_that_warn_shuffle_and_run_again(tmp_path):
    """The case that failed first leaves its second timing, and none of the first."""
    done = run(benchmarks(tmp_path / "r", "--gpt-num-gpus", "1,2", "-k", "pure or tensor", *OTHERS))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    tensor = "test_generation[tensor_data_hybrid-2gpu]"
    assert report(tmp_path / "r") == ([tensor, TWO, ONE], {"not_run": []})
    assert journal(tmp_path / "r") == [(tensor, "failed"), (tensor, "passed"), (TWO, "passed"), (ONE, "passed")]
    table = done.stdout[done.stdout.index("speed-up") :]
    assert " 1.00×" in table


def test_a_benchmark_fixture_of_another_plugin_is_named(tmp_path):
    done = run(benchmarks(tmp_path / "r", "--gpt-num-gpus", "1", "--other-codspeed", *OTHERS))

    assert done.returncode == 1
    assert (
        "gpt_parallel: the fixture 'benchmark' is that of tests, but cases are timed by pytest-benchmark; run them "
        "without that plugin (leave out --codspeed, or add -p no:codspeed)"
    ) in done.stdout


LOUD = """
import warnings
from gpt_parallel.bench.session_record import SessionRecord
from gpt_parallel.bench.suite import Suite

def make_loud(owner, name):
    def loud(*arguments, **named):
        warnings.warn(f"{name}: use something newer", FutureWarning, stacklevel=1)
        return quiet(*arguments, **named)

    quiet = getattr(owner, name)
    setattr(owner, name, loud)

for owner, name in ((Suite, "spec"), (Suite, "run"), (SessionRecord, "write_report")):
    make_loud(owner, name)
"""


def test_warnings_may_be_errors(tmp_path):
    """In a cold process, whose imports may warn too, and in its ranks; those of the user's own test are errors."""
    (tmp_path / "loud.py").write_text(LOUD)
    own = tmp_path / "test_own.py"
    own.write_text("import warnings\n\ndef test_own():\n    warnings.warn('mine')\n")
    command = benchmarks(tmp_path / "r", own, "--gpt-num-gpus", "2", "-k", "tensor or own", "-W", "error", "-p", "loud")
    variables = environment(
        **{VARIABLE: "warn_while_loading", "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        **{"PYTHONWARNINGS": "error", "GPT_PARALLEL_CACHE": str(tmp_path / "cache")},
    )
    command += ["-p", "tests.support.mutants"]

    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=200)

    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "::test_own - UserWarning: mine" in done.stdout
    assert report(tmp_path / "r")[0] == ["test_generation[tensor_data_hybrid-2gpu]"]


def test_a_finished_session_of_other_settings_leaves_nothing_to_resume(tmp_path):
    """The README's lines, one after the other."""
    one = ("--gpt-num-gpus", "1")
    assert run(benchmarks(tmp_path / "r", *one, "--gpt-breakdown")).returncode == 0

    done = run(benchmarks(tmp_path / "r", *one, "--gpt-resume"))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "session.jsonl was of a finished session with other settings; all cases run" in done.stdout
    assert report(tmp_path / "r") == ([ONE], {"not_run": []})
