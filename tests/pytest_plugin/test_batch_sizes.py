"""Several batch sizes as a third axis of cases, from their ids to the report."""

import json

from gpt_parallel.report.saved_run import load_run
from tests.support.halting import benchmarks, journal, run

IDS = [f"test_generation[pure_data_parallel-{case}]" for case in ("1gpu-b2", "2gpu-b2", "1gpu-b4", "2gpu-b4")]


def sweep(directory, *arguments):
    return benchmarks(directory, "-k", "pure and not 4gpu", "--gpt-batch-sizes", "4,2", *arguments)


def test_every_case_runs_with_every_batch_size(tmp_path):
    saved = tmp_path / "b.json"

    done = run(sweep(tmp_path / "r", "--benchmark-json", saved))

    assert done.returncode == 0, done.stdout + done.stderr
    for path in (saved, tmp_path / "r" / "benchmarks.json"):
        found = json.loads(path.read_text())["benchmarks"]
        assert sorted(bench["name"] for bench in found) == sorted(IDS)
        for bench in found:
            assert f"-b{bench['extra_info']['batch_size']}]" in bench["name"]
            assert bench["params"]["gpt_batch_size"] == bench["extra_info"]["batch_size"]
            assert bench["extra_info"]["verified"] == "exact"
    table = done.stdout.partition("gpt_parallel")[2]
    assert "devices   batch   mesh" in table
    assert table.count("1.00×") == 2, "speed-up is over the one-device case of the same batch size"
    report = (tmp_path / "r" / "performance_report.txt").read_text()
    assert report.count("devices  mesh  batch") == 1
    assert [case.name for case in load_run(saved).cases] == IDS


def test_one_batch_size_can_be_chosen_and_the_rest_gone_on_with(tmp_path):
    first = run([*sweep(tmp_path / "r"), "-k", "1gpu and b4"])
    again = run([*sweep(tmp_path / "r"), "-k", "1gpu and pure", "--gpt-resume"])

    assert first.returncode == again.returncode == 0, first.stdout + again.stdout
    assert "1 of 2 cases come from an earlier session" in again.stdout
    assert journal(tmp_path / "r") == [(IDS[2], "passed"), (IDS[0], "passed")]


def test_without_them_ids_are_as_they_were(tmp_path):
    collected = run([*benchmarks(tmp_path), "--collect-only", "-q", "--gpt-num-gpus", "1"]).stdout

    assert "test_generation.py::test_generation[pure_data_parallel-1gpu]\n" in collected


def test_wrong_batch_sizes_are_a_usage_error(tmp_path):
    done = run(benchmarks(tmp_path, "--gpt-batch-sizes", "2,x"))

    assert done.returncode == 4
    assert "batch_sizes = '2,x': must be comma-separated batch sizes from 1 to 1000000" in done.stderr
