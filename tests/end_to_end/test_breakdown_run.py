"""`--breakdown` and `--profile` as users have them: real ranks, and what is left behind."""

import json

import pytest

from gpt_parallel import load_result
from tests.cli.test_commands import SMOKE, run_cli
from tests.pytest_plugin.test_plugin import run_pytest


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    case = ("run", "--strategy", "pipeline_data_hybrid", "--num-gpus", "2", *SMOKE, "--num-samples", "4")
    extra = ("--breakdown", "--profile", directory / "profile", "--output-dir", directory / "out")
    finished = run_cli(*case, *extra)
    assert finished.returncode == 0, finished.stderr
    return finished, load_result(directory / "out" / "result.json"), directory / "profile"


def test_each_ranks_parts_are_its_pass(done):
    _, result, _ = done

    for rank in result.ranks:
        parts = rank.diagnostics.breakdown.model_dump(exclude={"wall_s", "method"})
        assert all(seconds >= 0 for seconds in parts.values()), parts
        assert sum(parts.values()) == pytest.approx(rank.diagnostics.breakdown.wall_s)
        assert rank.diagnostics.breakdown.compute_s > 0
        assert rank.diagnostics.breakdown.waiting_s > 0, "the stages take turns"
    first, last = result.ranks
    assert first.diagnostics.breakdown.sampling_s == 0 < last.diagnostics.breakdown.sampling_s
    assert first.diagnostics.breakdown.wall_s == pytest.approx(last.diagnostics.breakdown.wall_s, rel=0.5), (
        "they start and end together"
    )


def test_neither_changes_what_is_recorded_of_the_rounds(done):
    _, result, _ = done

    assert result.verification.status == "exact"
    steps = 2 * 8  # two batches of two requests
    calls = {(rank.place.rank, count.op): count.calls for rank in result.ranks for count in rank.generated.collectives}
    assert calls == {(0, "send_activation"): steps, (1, "send_token"): steps - 2}


def test_telemetry_is_there_without_asking(done):
    _, result, _ = done

    for rank in result.ranks:
        assert 0 < rank.diagnostics.telemetry.cpu_share <= 1.1
        assert 0 < rank.diagnostics.telemetry.proportional_bytes <= rank.diagnostics.telemetry.resident_bytes
        assert rank.diagnostics.peak_rates.bytes_per_s > 0
    assert result.efficiency.mbu > 0
    assert 0 < result.efficiency.mfu < 1
    assert result.figures.imbalance >= 1
    assert result.energy.energy_j is None
    assert "CPU cores" in result.energy.unavailable["energy_j"]


def test_the_terminal_shows_tables_and_where_the_traces_are(done):
    finished, _, profile = done

    table = finished.stdout[finished.stdout.index("Where the time goes") :]
    for heading in ("rank", "stage", "compute", "communication", "waiting", "sampling", "host"):
        assert heading in table
    assert "waiting is timed where the transport waits" in table
    assert str(profile) in table
    assert "aten::addmm" in table


def test_traces_are_json_that_a_viewer_opens(done):
    _, _, profile = done

    assert sorted(path.name for path in profile.iterdir()) == ["rank_0.json", "rank_0.txt", "rank_1.json", "rank_1.txt"]
    for rank in (0, 1):
        events = json.loads((profile / f"rank_{rank}.json").read_text())["traceEvents"]
        assert any(event.get("name") == "aten::addmm" and event["ph"] == "X" for event in events)
        assert "aten::addmm" in (profile / f"rank_{rank}.txt").read_text()


def test_telemetry_can_be_left_out(tmp_path):
    case = ("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", *SMOKE, "--no-verify", "--no-telemetry")

    assert run_cli(*case, "--output-dir", tmp_path).returncode == 0

    result = load_result(tmp_path / "result.json")
    (rank,) = result.ranks
    assert rank.diagnostics.telemetry is rank.diagnostics.peak_rates is rank.diagnostics.breakdown is None
    assert result.energy.unavailable["energy_j"] == "telemetry was switched off"
    assert "telemetry was switched off" in result.efficiency.unavailable["mbu"]
    assert result.figures.throughput_tok_s > 0


def test_under_pytest_a_row_for_each_case_and_a_directory_too(tmp_path):
    done = run_pytest(
        *("--gpt-preset", "smoke", "-k", "1gpu or pipeline and 2gpu", "--gpt-num-iterations", "1", "--gpt-no-verify"),
        *(
            "--gpt-breakdown",
            "--gpt-profile",
            str(tmp_path / "profile"),
            "--benchmark-json",
            str(tmp_path / "run.json"),
        ),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Where the time goes" in done.stdout
    assert f"profiles: a directory for each case in {tmp_path / 'profile'}" in done.stdout
    for bench in json.loads((tmp_path / "run.json").read_text())["benchmarks"]:
        info = bench["extra_info"]
        parts = [info[f"breakdown_{part}"] for part in ("compute", "communication", "waiting", "sampling", "host")]
        assert sum(parts) == pytest.approx(1)
        assert (info["breakdown_waiting"] > 0) == (info["num_gpus"] == 2)
        assert info["mbu"] > 0
        assert info["cpu_share"] > 0
        assert "gpu_power_w" in info["unavailable"]
        directory = tmp_path / "profile" / f"{info['strategy']}-{info['num_gpus']}gpu-batch2"
        assert len(list(directory.glob("rank_*.json"))) == info["num_gpus"]


def test_a_profile_directory_that_cannot_be_made_is_a_wrong_use(tmp_path):
    (tmp_path / "file").write_text("in the way")
    case = ("run", "--strategy", "pure_data_parallel", "--num-gpus", "1", *SMOKE, "--no-verify")

    done = run_cli(*case, "--profile", tmp_path / "file" / "here", "--output-dir", tmp_path / "out")

    assert done.returncode == 2
    assert "profile directory" in done.stderr
    assert "Traceback" not in done.stderr
