"""Each finding is computed from the data, or is not there."""

import pytest

from gpt_parallel.report.findings import key_findings
from tests.support.factories import bench, document


def case(strategy, num_gpus, throughput, **changes):
    return bench(f"{strategy}-{num_gpus}gpu", (throughput,), strategy=strategy, num_gpus=num_gpus, **changes)


@pytest.fixture
def findings(saved):
    return lambda *benches, **changes: "\n".join(key_findings(saved("run", document(*benches, **changes))))


def test_best_efficiency_and_spread(findings):
    text = findings(case("dp", 1, 100.0), case("dp", 2, 180.0), case("tp", 2, 120.0))

    assert "Highest throughput: dp on 2 devices with 180.0 tokens/s, 1.80× one device." in text
    assert "Mean parallel efficiency on 2 devices: 75%." in text
    assert "On 2 devices dp is 1.50× as fast as tp." in text
    assert "Every token of every case is the single-device run's." in text


def test_oversubscribed_cases_do_not_win(findings):
    text = findings(case("dp", 1, 100.0), case("dp", 4, 300.0, oversubscribed=True))

    assert "Highest throughput among the cases with a device per rank: dp on 1 device with 100.0 tokens/s." in text
    assert "Mean parallel efficiency on 4 devices: 75% (oversubscribed: not a measure of scaling)." in text
    assert "Oversubscribed (more ranks than devices; right tokens, no measure of scaling): dp on 4 devices." in text


def test_degenerate_cases_do_not_count_twice(findings):
    text = findings(case("dp", 1, 100.0), case("tp", 2, 150.0), case("full", 2, 170.0, degenerate=True))

    assert "Mean parallel efficiency on 2 devices: 75%." in text
    assert "Degenerate (the same mesh as an earlier strategy): full on 2 devices." in text
    assert "as fast as" not in text
    assert "first token: tp on 2 devices" in text


def test_cases_that_shared_their_devices_are_named(findings):
    text = findings(case("dp", 1, 100.0), case("dp", 2, 110.0, shared=True))

    assert "Shared (another run used the same devices; slower than alone): dp on 2 devices." in text
    assert "Shared" not in findings(case("dp", 1, 100.0))


def test_shortest_times_are_named(findings):
    text = findings(case("dp", 1, 100.0), case("tp", 2, 200.0))

    assert "Shortest time to first token: tp on 2 devices with 5 ms (median)." in text
    assert "Shortest time per output token: tp on 2 devices with 0.5 ms (median)." in text


def parts(waiting, communication=0.1):
    shares = {"compute": 0.8 - waiting - communication, "communication": communication, "waiting": waiting}
    shares |= {"sampling": 0.1, "host": 0.1}
    return {f"breakdown_{part}": share for part, share in shares.items()}


def test_who_waits_and_who_communicates_most(findings):
    text = findings(
        case("dp", 1, 100.0, **parts(0.0, 0.5)),
        case("pp", 2, 150.0, **parts(0.34)),
        case("tp", 2, 150.0, **parts(0.05, 0.25)),
        case("full", 2, 150.0, **parts(0.7, 0.0), degenerate=True),
    )

    assert "pp on 2 devices waits most for peers: 34% of its ranks' time." in text
    assert "tp on 2 devices communicates most: 25% of its ranks' time." in text


def test_limits_energy_and_balance(findings):
    text = findings(
        case("dp", 1, 100.0, mbu=0.61, energy_j_per_token=0.5, imbalance=1.0),
        case("dp", 2, 190.0, mbu=0.4, energy_j_per_token=0.75, imbalance=1.2),
        case("tp", 2, 150.0, imbalance=1.04),
    )

    assert "Nearest to the memory's limit: dp on 1 device, 61% of the measured peak." in text
    assert "Least energy: dp on 1 device with 0.5 J per output token." in text
    assert "Most uneven: dp on 2 devices, whose slowest rank takes 1.20× the mean." in text


def test_without_telemetry_nothing_is_said_of_it(findings):
    text = findings(case("dp", 1, 100.0), case("dp", 2, 190.0, imbalance=1.04))

    for word in ("limit", "energy", "waits", "communicates", "uneven"):
        assert word not in text


def test_no_speed_up_without_the_one_device_case(findings):
    text = findings(case("dp", 2, 180.0), case("tp", 2, 120.0))

    assert "efficiency" not in text
    assert "× one device" not in text


def test_workloads_are_not_mixed(findings):
    text = findings(case("dp", 1, 100.0), case("tp", 2, 900.0, workload_sha256="cd" * 32))

    assert "Highest" not in text
    assert "efficiency" not in text


def test_unverified_and_ties_are_said(findings):
    text = findings(case("dp", 1, 100.0), case("dp", 2, 90.0, verified="tie"), case("tp", 2, 9.0, verified="skipped"))

    assert "1 of 3 cases are exact; with ties only: 1; NOT verified: 1." in text
    assert "Every token" not in text


def test_cases_that_do_not_repeat_are_named_with_what_does(findings):
    changing = {"verified": "tie", "repeatable": False, "attention_decode": "cudnn"}
    text = findings(case("dp", 1, 100.0), case("dp", 2, 90.0, **changing), case("tp", 2, 9.0, **changing))

    (line,) = [line for line in text.splitlines() if "Not repeatable" in line]
    assert "cuDNN's attention does not repeat: --gpt-attention flash repeats" in line
    assert line.rstrip(".").endswith("): dp on 2 devices, tp on 2 devices")


def test_what_did_not_run_is_said_with_its_reason(findings):
    entries = [
        {"case": "a", "outcome": "skipped", "reason": "needs 8 GPUs"},
        {"case": "b", "outcome": "failed", "reason": "rank 1 was killed\nmore"},
    ]

    text = findings(case("dp", 1, 100.0), gpt_parallel={"not_run": entries})

    assert "Skipped: a (needs 8 GPUs)." in text
    assert "Failed: b (rank 1 was killed)." in text


def test_plain_benchmarks_have_no_findings(findings):
    plain = bench()
    plain["extra_info"] = {}

    assert findings(plain) == ""
