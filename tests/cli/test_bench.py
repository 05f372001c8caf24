"""`gpt-parallel bench`: the cases of `pytest benchmarks`, in any directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt_parallel.pytest_plugin.bench import command
from tests.support import warm
from tests.support.halting import CHARTLESS, SMOKE, report
from tests.support.paths import ROOT
from tests.support.processes import environment

CASE = "test_generation[pure_data_parallel-1gpu]"


def bench(directory, *arguments):
    """Warm, and with the arguments that the command gives to pytest."""
    words = [*command(list(arguments), directory), *CHARTLESS]
    return warm.run([warm.PYTEST, *words], cwd=directory, env=environment())


def collected(done):
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_the_cases_are_those_of_the_checkout(tmp_path):
    """In a cold process of the console script, from an empty directory, and from one that holds the package."""
    options = ("--collect-only", "-q", "-k", "2gpu or 4gpu", "--gpt-preset", "smoke")
    script = str(Path(sys.executable).parent / "gpt-parallel")
    cold = subprocess.run(
        [script, "bench", *options], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    checkout = warm.run([warm.PYTEST, "benchmarks", *options], cwd=ROOT, env=environment())

    assert cold.returncode == 0, cold.stdout + cold.stderr
    assert len(collected(checkout)) == 8
    assert collected(cold) == collected(bench(ROOT, *options)) == collected(checkout)


def test_settings_strategies_and_files_are_those_of_the_working_directory(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\ngpt_num_gpus = 1\ntestpaths = tests\n")
    (tmp_path / "conftest.py").write_text(
        "from gpt_parallel import MeshSpec, register_strategy\n\n"
        "register_strategy('alone', lambda n: MeshSpec() if n == 1 else None)\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text("raise SystemExit('of tests that are not run')\n")

    done = bench(tmp_path, *SMOKE)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nbenchmarks/test_generation.py ." in done.stdout
    assert report(tmp_path / "reports" / "latest")[0] == [CASE, "test_generation[alone-1gpu]"]
    assert (tmp_path / ".pytest_cache").is_dir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("mine", "test_a.py"),
            "gpt-parallel bench: mine, test_a.py: only the shipped cases run; choose among them with",
        ),
        (("-n", "2"), "gpt_parallel: cases cannot be timed side by side with pytest-xdist"),
        (("--gpt-preset", "huge"), "gpt_parallel: unknown preset 'huge'"),
    ],
)
def test_what_cannot_be_done_is_one_usage_error(arguments, message, tmp_path):
    for name in ("mine", "test_a.py"):
        (tmp_path / name).touch()

    done = bench(tmp_path, *arguments)

    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_help_shows_examples():
    done = warm.run([warm.GPT_PARALLEL, "bench", "--help"])

    assert done.returncode == 0
    assert "gpt-parallel bench -k 4gpu" in done.stdout
