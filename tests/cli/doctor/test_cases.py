"""Which cases can run on a made-up machine."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli.doctor.cases import judge_cases, rank_bytes
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import devices
from tests.cli.doctor.conftest import GIB, gpu


@pytest.fixture
def with_gpus(monkeypatch):
    def with_gpus(count):
        found = tuple(devices.Gpu("NVIDIA H100", (9, 0)) for _ in range(count))
        for module in ("launch.devices", "inputs.execution", "cli.doctor.connectivity"):
            monkeypatch.setattr(f"gpt_parallel.{module}.cuda_devices", lambda: found)

    return with_gpus


def outcomes(facts, preset="smoke", **given):
    verdicts = judge_cases(make_settings(preset, given), facts)
    return {f"{case.strategy}-{case.num_gpus}": (case.outcome, case.reason) for case in verdicts}


def test_nine_cases_run_on_cores(facts):
    found = outcomes(facts(), device="cpu")

    assert len(found) == 9
    assert set(found.values()) == {("runs", "")}


def test_too_little_memory_is_told_with_the_sizes(facts):
    found = outcomes(facts(available_bytes=GIB), preset="cpu", device="cpu", strategy="pure_data_parallel")

    assert found["pure_data_parallel-1"][0] == "runs"
    assert found["pure_data_parallel-2"] == ("fails", "needs about 1.6 GiB of memory, 1.0 GiB are free")


def test_a_reference_that_does_not_fit_is_a_reason(facts, with_gpus):
    with_gpus(2)
    machine = facts(gpus=(gpu(0, free_bytes=4 * GIB), gpu(1, free_bytes=5 * GIB)))

    found = outcomes(machine, preset="xl", num_gpus="2", weights="random", strategy="tensor_data_hybrid")
    unverified = outcomes(
        machine, preset="xl", num_gpus="2", weights="random", strategy="tensor_data_hybrid", verify="false"
    )

    outcome, reason = found["tensor_data_hybrid-2"]
    assert outcome == "fails"
    assert "its single-device reference needs about" in reason
    assert "on each GPU, 4.0 GiB are free (--no-verify skips it)" in reason
    assert unverified["tensor_data_hybrid-2"] == ("runs", "")


def test_cases_for_more_gpus_are_skipped(facts, with_gpus):
    with_gpus(1)

    found = outcomes(facts(gpus=1), preset="xl", weights="random")

    assert found["pure_data_parallel-1"] == ("runs", "")
    assert found["tensor_data_hybrid-2"][0] == "skipped"
    assert "needs 2 GPUs, this machine has 1" in found["tensor_data_hybrid-2"][1]


def test_ranks_that_share_a_gpu_share_its_memory(facts, with_gpus):
    with_gpus(1)
    given = {"weights": "random", "oversubscribe": "true", "strategy": "pure_data_parallel", "num_gpus": "1,2"}

    found = outcomes(facts(gpus=(gpu(free_bytes=7 * GIB),)), preset="xl", **given)

    assert [outcome for outcome, _ in found.values()] == ["runs", "fails"]


def test_sizes_that_cannot_be(facts):
    found = outcomes(facts(), device="cpu", tensor_parallel_size="6")

    assert found["custom-6"][0] == "fails"
    assert "larger than gpt2-nano's 5 attention heads" in found["custom-6"][1]
    with pytest.raises(SpecError, match="unknown strategy 'x'"):
        outcomes(facts(), device="cpu", strategy="x")


def test_weights_are_not_fetched_to_look_at_cases(facts, monkeypatch):
    monkeypatch.setattr("gpt_parallel.inputs.models._download", lambda *_: pytest.fail("fetched"))

    found = outcomes(facts(), device="cpu", model="gpt2", weights="checkpoint", num_gpus="1")

    assert found["pure_data_parallel-1"] == ("runs", "")


def test_the_estimate_holds_on_this_machine(tmp_path, users_server):
    """Within a quarter of what a rank of the tiny model really took at its peak, torch itself included."""
    suite = Suite(make_settings("smoke", {"device": "cpu", "verify": "false", "num_iterations": "1"}))
    spec = suite.spec("tensor_data_hybrid", 2)

    peak = max(rank.diagnostics.peak_memory_bytes for rank in suite.run(spec).ranks)

    assert rank_bytes(spec) == pytest.approx(peak, rel=0.25)
