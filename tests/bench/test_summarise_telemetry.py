"""Telemetry of launches, ranks and GPUs as one row: nothing is lost, nothing is made up."""

import pytest
from pydantic import ValidationError

from gpt_parallel.bench.summarise import summarise
from gpt_parallel.schema.telemetry import Breakdown, Efficiency, Energy, GpuTelemetry, RankTelemetry
from tests.bench.test_figures import launch
from tests.support.factories import rank_report

CPU_RANK = {"peak_allocated_bytes": "no GPU", "peak_reserved_bytes": "no GPU", "device_uuid": "no GPU"}


def telemetry(share, resident):
    return RankTelemetry(
        seconds=2.0,
        cpu_seconds=2.0 * share,
        cpu_share=share,
        resident_bytes=resident,
        proportional_bytes=resident // 2,
        unavailable=CPU_RANK,
    )


def gpu(number, **changes):
    fields = {
        "uuid": f"GPU-{number}",
        "name": "GPU model",
        "seconds": 1.0,
        "samples": 9,
        "utilisation_percent": 50.0 + number,
        "memory_used_bytes": 1000 + number,
        "power_w": 300.0,
        "sm_clock_mhz": 1500.0,
        "memory_clock_mhz": 2600.0,
        "temperature_c": 60.0 + number,
        "throttle_reasons": ("hardware slowdown",) if number else (),
        "energy_j": 9.0,
    }
    return GpuTelemetry(**{**fields, **changes})


def breakdown(waiting, wall=10.0):
    rest = wall - waiting - 2
    return Breakdown(
        wall_s=wall, compute_s=rest, communication_s=1, waiting_s=waiting, sampling_s=0.5, host_s=0.5, method="m"
    )


def result(**changes):
    ranks = changes.pop("ranks", launch(1.0).ranks)
    fields = {
        "energy": Energy(unavailable=dict.fromkeys(("energy_j", "energy_j_per_token"), "no GPU at all")),
        "efficiency": Efficiency(peak="reading", mbu=0.5, bytes_per_step=1, flop_per_round=1, unavailable={"mfu": "x"}),
    }
    return launch(1.0).model_copy(update={**fields, "ranks": tuple(ranks), **changes})


def test_ranks_are_averaged_or_the_largest_counts_and_launches_have_a_median():
    shares = ((1.0, 0.5), (0.25, 0.25), (0.5, 0.5))
    launches = [
        result(ranks=[rank_report(i, telemetry=telemetry(share, 100 * (i + 1))) for i, share in enumerate(pair)])
        for pair in shares
    ]

    row = summarise(launches)

    assert row.cpu_share == 0.5, "of 0.75, 0.25 and 0.5"
    assert (row.max_resident_bytes, row.max_proportional_bytes) == (200, 100)
    assert (row.mbu, row.mfu, row.peak) == (0.5, None, "reading")


def test_what_is_missing_is_null_with_its_reason_once():
    row = summarise([result(ranks=[rank_report(telemetry=telemetry(1.0, 10))])])

    assert row.energy_j_per_token is row.gpu_power_w is row.max_reserved_bytes is row.breakdown_waiting is None
    reasons = row.unavailable.split("; ")
    assert "mfu: x" in reasons
    assert "max_reserved_bytes: no GPU" in reasons
    (gpus,) = [reason for reason in reasons if reason.endswith(": no GPU at all")]
    assert "gpu_power_w" in gpus
    assert "energy_j_per_token" in gpus


def test_a_value_that_one_rank_lacks_is_not_made_of_the_others():
    ranks = [rank_report(0, telemetry=telemetry(1.0, 10)), rank_report(1)]

    assert summarise([result(ranks=ranks)]).cpu_share is None


def test_gpus_together():
    energy = Energy(energy_j=18.0, energy_j_per_token=6.0)

    row = summarise([result(gpus=(gpu(0), gpu(1)), energy=energy)])

    assert (row.gpu_utilisation_percent, row.gpu_power_w, row.gpu_temperature_c) == (50.5, 600, 61)
    assert row.gpu_memory_used_bytes == 1001
    assert row.gpu_throttle_reasons == "hardware slowdown"
    assert row.energy_j_per_token == 6
    assert summarise([result(gpus=(gpu(0),), energy=energy)]).gpu_throttle_reasons == "none"
    silent = gpu(1, power_w=None, unavailable={"power_w": "NVML: Not Supported"})
    row = summarise([result(gpus=(gpu(0), silent), energy=energy)])
    assert row.gpu_power_w is None
    assert "gpu_power_w: NVML: Not Supported" in row.unavailable


def test_the_breakdown_is_in_shares_of_all_ranks_time_and_they_add_up():
    ranks = [rank_report(0, breakdown=breakdown(1.0)), rank_report(1, breakdown=breakdown(5.0))]

    row = summarise([result(ranks=ranks)])

    assert row.breakdown_waiting == pytest.approx(0.3)
    parts = ("compute", "communication", "waiting", "sampling", "host")
    assert sum(getattr(row, f"breakdown_{part}") for part in parts) == pytest.approx(1)


def test_a_gap_without_a_reason_cannot_be_written():
    with pytest.raises(ValidationError, match="no value and no reason for energy_j"):
        Energy(energy_j_per_token=1.0)
