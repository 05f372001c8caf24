"""A GPU in the machine does not change what the tests test: shown with one that NVML seems to have."""

import subprocess
import sys

import pytest

from gpt_parallel.launch.devices import cuda_devices
from tests.conftest import USERS_OWN, VISIBLE
from tests.support.paths import ROOT
from tests.support.processes import environment


@pytest.fixture
def run():
    """Python with the fake GPU, as a user would have it."""

    def run(*arguments, **variables):
        theirs = environment(PYTHONPATH=str(ROOT / "tests" / "support" / "fake_gpu"), **variables)
        for name in (VISIBLE, USERS_OWN):
            if name not in variables:
                theirs.pop(name, None)
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=theirs, capture_output=True, text=True, timeout=200
        )

    return run


def test_no_test_sees_a_gpu_unless_it_is_marked():
    assert cuda_devices() == ()


def test_the_fake_is_taken_for_a_gpu(run):
    code = "from gpt_parallel.inputs import execution as e; print(e.default_preset(), e.cuda_devices())"

    assert run("-c", code).stdout.startswith("xl (Gpu(name='NVIDIA fake of an H100'")
    assert run("-c", code, CUDA_VISIBLE_DEVICES="").stdout == "cpu ()\n"


@pytest.mark.parametrize(
    ("visible", "outcome"), [({}, "2 passed, 1 skipped"), ({"CUDA_VISIBLE_DEVICES": ""}, "1 passed, 2 skipped")]
)
def test_only_marked_tests_see_it(run, tmp_path, visible, outcome):
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n"
        "from gpt_parallel.launch.devices import cuda_devices\n"
        "@pytest.fixture(scope='module')\n"
        "def count(): return len(cuda_devices())\n"
        "@pytest.mark.cuda(n=1)\n"
        "def test_marked(count): assert count == 1\n"
        "@pytest.mark.cuda(n=2)\n"
        "def test_two(): assert False\n"
        "def test_other(): assert cuda_devices() == ()\n"
    )
    given = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-c", "pytest.ini", "-rs", str(test))

    done = run("-m", "pytest", *given, **visible)

    assert outcome in done.stdout, done.stdout + done.stderr
    assert "needs 2 NVIDIA GPU(s), " in done.stdout


def test_tests_that_run_cases_pass_beside_it(run):
    """Some of every kind; tests/support/fake_gpu/sitecustomize.py says how to run all of them so."""
    chosen = (
        "tests/end_to_end/test_mutations.py::test_a_mismatch_fails_the_case_and_saves_no_timing",
        "tests/cli/test_commands.py::test_sampling_options_reach_the_ranks",
        "tests/bench/test_suite.py",
        "tests/launch/test_devices.py",
    )
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen)

    assert done.returncode == 0, done.stdout + done.stderr
