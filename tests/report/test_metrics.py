"""A metric is one row of a table, and whatever fills in its value."""

import csv
import json
import subprocess
import sys

from gpt_parallel.schema.metrics import METRICS
from gpt_parallel.schema.summary import CaseSummary
from tests.support.paths import ROOT

# Added before anything else of the package is imported, as one more row of the table would be.
CODE = """
import sys
from pathlib import Path
from gpt_parallel.schema import metrics

row = metrics.Metric("rounds_per_s", lambda result: 1 / result.figures.round_seconds[0], "", "rounds", "{:.1f}", " /s")
metrics.METRICS.append(row)
sys.path.insert(0, sys.argv[2])

from gpt_parallel.bench.session_record import SessionRecord
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.schema.result import Figures
from tests.support.factories import run_result, run_spec

figures = Figures(round_seconds=(0.5,), throughput_tok_s=100.0)
result = run_result(run_spec()).model_copy(update={"figures": figures})
record = SessionRecord()
record.add("t.py::t", "t", None, {}, summarise([result]))
record.write_report(Path(sys.argv[1]))
"""


def test_a_new_row_reaches_files_tables_and_report(tmp_path):
    subprocess.run([sys.executable, "-c", CODE, str(tmp_path), str(ROOT)], check=True, cwd=tmp_path)

    (bench,) = json.loads((tmp_path / "benchmarks.json").read_text())["benchmarks"]
    assert bench["extra_info"]["rounds_per_s"] == 2.0
    (row,) = csv.DictReader((tmp_path / "performance_summary.csv").read_text().splitlines())
    assert row["rounds_per_s"] == "2.0"
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "rounds" in text
        assert "2.0 /s" in text
    text = (tmp_path / "performance_report.txt").read_text()
    assert "rounds\n" in text
    assert "/s" in text


def test_every_metric_is_a_field_of_a_case():
    assert {metric.name for metric in METRICS} < set(CaseSummary.model_fields)
