"""On a GPU: what is read beside the figures is there, and is plausible."""

import json

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.devices import cuda_devices
from tests.cli.test_commands import run_cli

pytestmark = [pytest.mark.cuda(n=1), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    given = {"device": "cuda", "breakdown": True, "profile": str(profile), "max_length": 64, "num_iterations": 5}
    suite = Suite(make_settings("smoke", given))
    return suite.run(suite.spec("pure_data_parallel", 1)), profile


def test_telemetry_energy_peaks_and_breakdown_are_there(measured):
    result, _ = measured
    (rank,), (gpu,) = result.ranks, result.gpus

    assert result.energy.energy_j > 0
    assert result.energy.energy_j_per_token > 0
    assert rank.diagnostics.peak_rates.bytes_per_s > 1e11
    assert rank.diagnostics.peak_rates.flop_per_s > 1e12
    assert result.efficiency.mbu > 0
    assert 0 < result.efficiency.mfu < 1
    assert (
        rank.diagnostics.telemetry.peak_reserved_bytes
        >= rank.diagnostics.peak_memory_bytes
        > rank.holding.parameter_bytes
    )
    assert gpu.power_w > 0
    assert gpu.utilisation_percent > 0
    parts = rank.diagnostics.breakdown.model_dump(exclude={"wall_s", "method"})
    assert sum(parts.values()) == pytest.approx(rank.diagnostics.breakdown.wall_s)
    assert rank.diagnostics.breakdown.compute_s > 0


def test_a_profile_has_the_gpu_s_kernels(measured):
    _, profile = measured
    (trace,) = profile.rglob("rank_0.json")

    events = json.loads(trace.read_text())["traceEvents"]

    assert sum(event.get("cat") == "kernel" for event in events) > 100


def test_doctor_sees_the_gpu_and_the_build():
    done = run_cli("doctor")

    assert cuda_devices()[0].name in done.stdout
    assert "CPU build" not in done.stdout


def test_the_first_command_works_and_names_the_card():
    done = run_cli("run", "--preset", "smoke", "--strategy", "pure_data_parallel", "--num-gpus", "1")

    assert done.returncode == 0, done.stdout + done.stderr
    assert cuda_devices()[0].name in done.stdout
    assert "exact" in done.stdout
