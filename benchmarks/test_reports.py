"""What a large file costs: run `pytest benchmarks/test_reports.py`."""

import json

import pytest

from gpt_parallel.report.render import write_report
from gpt_parallel.report.saved_run import load_run
from tests.support.factories import bench, document


@pytest.fixture
def large_file(tmp_path):
    """Writes a file of so many different cases, each of three launches."""

    def write(count):
        entries = [
            bench(f"case-{index}", (100.0, 101.0, 99.0 + index % 7), num_gpus=1 + index % 8, mesh=f"dp{1 + index % 8}")
            for index in range(count)
        ]
        path = tmp_path / f"{count}.json"
        path.write_text(json.dumps(document(*entries)))
        return path

    return write


def test_a_thousand_cases_in_all_formats(benchmark, large_file, tmp_path):
    path = large_file(1000)

    written = benchmark.pedantic(lambda: write_report([load_run(path)], tmp_path / "report"), rounds=3)

    assert len(written) > 4
    assert benchmark.stats is None or benchmark.stats.stats.median < 20


def test_ten_thousand_cases_load(benchmark, large_file):
    path = large_file(10_000)

    run = benchmark.pedantic(lambda: load_run(path), rounds=3)

    assert len(run.cases) == 10_000
    assert benchmark.stats is None or benchmark.stats.stats.median < 3
