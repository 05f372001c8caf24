"""The workflow that shows gates in use: its own commands, on saved files."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support.factories import bench, document
from tests.support.paths import ROOT
from tests.support.processes import environment

GOLDEN = ROOT / "tests/report/golden/run.json"
STEADY = (100.0, 101.0, 99.5, 100.5)


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((ROOT / ".github/workflows/benchmarks.yml").read_text())["jobs"]["gate"]


@pytest.fixture
def run_step(job, tmp_path):
    """Runs a step by its name, as GitHub does; head-env is this environment, the saved files are the given ones."""
    (tmp_path / "head-env").symlink_to(Path(sys.executable).parent.parent)

    def run(name, base, head):
        (tmp_path / "base.json").write_text(json.dumps(base))
        (tmp_path / "head.json").write_text(json.dumps(head))
        (script,) = (step["run"] for step in job["steps"] if step.get("name") == name)
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment(GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md")),
            capture_output=True,
            text=True,
            timeout=100,
        )

    return run


def test_report_goes_into_the_summary(run_step, tmp_path):
    golden = json.loads(GOLDEN.read_text())

    done = run_step("Report", golden, golden)

    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert "| pure_data_parallel | 4\\* | dp4 | 96.2 |" in summary
    assert "## Compared with base" in summary
    assert ".png" not in summary, "a summary cannot show files"
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize(
    ("after", "code", "said"),
    [
        (STEADY, 0, "::notice title=benchmark gate::PASS"),
        ((80.0, 81.0, 79.5, 80.5), 1, "::error title=FAIL"),
        ((60.0, 100.0, 140.0), 0, "::warning title=INCONCLUSIVE"),
        (None, 2, "::error title=ERROR"),
    ],
)
def test_gate_fails_on_a_regression_and_warns_of_doubt(after, code, said, run_step, tmp_path):
    head = document(bench(throughputs=after)) if after else json.loads(GOLDEN.read_text())

    done = run_step("Gate", document(bench(throughputs=STEADY)), head)

    # The last command is `gate || [ $? -eq 3 ]`, whose own code is 1 for every other one.
    assert done.returncode == min(code, 1), done.stderr
    assert said in done.stdout
    assert (tmp_path / "gate.xml").exists()


def test_the_cases_options_are_known(job):
    """What both commits are measured with selects cases of the main job."""
    options = shlex.split(job["env"]["CASES"])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", *options, "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_generation[pure_data_parallel-1gpu]" in done.stdout
    assert "4gpu" not in done.stdout
