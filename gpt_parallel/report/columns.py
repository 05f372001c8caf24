"""The columns of a report's tables: their headings and the formatting of cells."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from gpt_parallel.report.compare.side_by_side import Row
from gpt_parallel.report.tables import NOT_REPEATABLE, four_digits, marks, text_table
from gpt_parallel.schema.metrics import METRICS, Metric

NOTHING = "–"
Cells = dict[Any, Any]  # a row of the frame


class Column(NamedTuple):
    """A column. `unit` follows a number; in text it is in the heading, which may have other line breaks."""

    heading: str
    show: Callable[[Cells], str]
    unit: str = ""
    is_text: bool = False
    text_heading: str = ""

    def cell(self, row: Cells) -> str:
        shown = self.show(row)
        return shown + self.unit if shown != NOTHING else shown

    def heading_in_text(self) -> str:
        return (self.text_heading or self.heading.replace(" ", "\n")) + self.unit.replace(" ", "\n")


def _milliseconds(name: str) -> Callable[[Cells], str]:
    return lambda row: _quoted(row[name], lambda seconds: four_digits(seconds * 1000))


def _number(name: str, form: str) -> Callable[[Cells], str]:
    return lambda row: _quoted(row[name], lambda value: format(value, form))


def _times(name: str) -> Callable[[Cells], str]:
    return lambda row: _quoted(row[name], lambda ratio: f"{ratio:.2f}×")


def _quoted(value: Any, show: Callable[[Any], str]) -> str:
    return NOTHING if pd.isna(value) else show(value)


def _of_metric(metric: Metric) -> Column:
    return Column(
        metric.heading,
        lambda row: _quoted(row[metric.name], metric.form.format),
        metric.unit,
        text_heading=metric.text_heading,
    )


_SHOWN = [metric for metric in METRICS if metric.heading]
_RESULTS = (
    Column("case", lambda row: str(row["case"] if pd.isna(row["strategy"]) else row["strategy"]), is_text=True),
    Column("devices", lambda row: _number("num_gpus", ".0f")(row) + _marks(row)),
    Column("mesh", lambda row: _quoted(row["mesh"], str), is_text=True),
    Column("batch", _number("batch_size", ".0f")),
    Column("tokens/s", _number("throughput_tok_s", ",.1f")),
    Column("speed-up", _times("speedup")),
    Column("efficiency", _number("parallel_efficiency", ".0%")),
    Column("× transformers", _times("times_transformers"), text_heading="× trans-\nformers"),
    Column("TTFT", _milliseconds("ttft_p50_s"), " ms"),
    Column("TPOT", _milliseconds("tpot_p50_s"), " ms"),
    Column("verified", lambda row: _quoted(row["verified"], str) + _changing(row), is_text=True),
    Column("latency mean", _milliseconds("latency_mean_s"), " ms"),
    Column("latency p50", _milliseconds("latency_p50_s"), " ms"),
    Column("latency p90", _milliseconds("latency_p90_s"), " ms"),
    Column("latency p99", _milliseconds("latency_p99_s"), " ms"),
    Column("round", _milliseconds("round_median_s"), " ms"),
    Column("utilisation", _number("utilisation_percent", ".0f"), " %", text_heading="utili-\nsation"),
    Column("peak memory", lambda row: _quoted(row["peak_memory_bytes"], lambda size: f"{size / 2**20:,.0f}"), " MiB"),
    *map(_of_metric, _SHOWN),
)
# Columns that are shown only if they have values, with the frame's column of each.
_OPTIONAL = {"× transformers": "times_transformers", **{metric.heading: metric.name for metric in _SHOWN}}
# Narrow tables for text.
_TEXT_TABLES = (
    ("case", "devices", "mesh", "batch", "tokens/s", "speed-up", "efficiency", "× transformers", "round", "verified"),
    (
        *("case", "devices", "batch", "TTFT", "TPOT", "latency mean", "latency p50", "latency p90", "latency p99"),
        *("utilisation", "peak memory"),
    ),
    ("case", "devices", *(metric.heading for metric in _SHOWN)),
)
# Headings of the side-by-side table, and whether the column holds text.
COMPARISON = (
    *(("case", True), ("run", True)),
    *(("measured", False), ("launches", False), ("÷ baseline", False), ("95 % interval", False)),
    *(("commit", True), ("branch", True), ("machine", True)),
)
COMPARISON_NOTE = (
    "Throughputs are geometric means over launches, as the ratios are; plain benchmarks' times are medians."
)


def results_columns(frame: pd.DataFrame) -> list[Column]:
    """The columns of the result table that have values, and the batch size only if it varies."""
    left_out = {heading for heading, name in _OPTIONAL.items() if not frame[name].notna().any()}
    if frame["batch_size"].nunique() < 2:
        left_out.add("batch")
    return [column for column in _RESULTS if column.heading not in left_out]


def text_tables(columns: Sequence[Column], rows: Sequence[Cells]) -> list[str]:
    """The result table as several narrow tables; plain benchmarks, without latencies, are in the first only."""
    tables = []
    generation = [row for row in rows if not pd.isna(row["strategy"])]
    for names, shown in zip(_TEXT_TABLES, (rows, generation, generation), strict=True):
        used = [column for column in columns if column.heading in names]
        used.sort(key=lambda column: names.index(column.heading))
        cells = [[column.show(row) for column in used] for row in shown]
        if cells and any(column.heading not in ("case", "devices") for column in used):
            tables.append(text_table([column.heading_in_text() for column in used], cells, is_narrow=True))
    return tables


def comparison_cells(row: Row, baseline: str) -> list[str]:
    """One row of the side-by-side table."""
    measured = NOTHING if row.value is None else _measured(row.value, row.is_throughput)
    launches = str(row.launches) if row.is_throughput else NOTHING
    commit = row.run.commit[:12] + ("-dirty" if row.run.commit and row.run.dirty else "")
    origin = [commit or NOTHING, row.run.branch or NOTHING, row.run.machine]
    return [row.case, row.run.label, measured, launches, *_ratio_and_interval(row, baseline), *origin]


def _ratio_and_interval(row: Row, baseline: str) -> tuple[str, str]:
    if row.problem is not None:
        return "not comparable", row.problem
    if row.ratio is None:
        return "baseline" if row.run.label == baseline else "new", NOTHING
    if row.interval is not None:
        interval = f"{row.interval[0]:.3f} – {row.interval[1]:.3f}"
    else:
        interval = "needs 2 launches a side" if row.is_throughput else NOTHING
    return f"{row.ratio:.3f}×", interval


def narrow_comparison(rows: Sequence[Sequence[str]]) -> str:
    """The side-by-side table for text, without the columns that each run's heading repeats."""
    left_out = ("commit", "branch", "machine")
    kept = [index for index, (heading, _) in enumerate(COMPARISON) if heading not in left_out]
    headings = [COMPARISON[index][0].replace("÷ ", "÷\n") for index in kept]
    return text_table(headings, [[row[index] for index in kept] for row in rows], is_narrow=True)


def _measured(value: float, is_throughput: bool) -> str:
    return f"{four_digits(value)} tokens/s" if is_throughput else duration(value)


def duration(seconds: float) -> str:
    """A duration in a suitable unit."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{four_digits(seconds * factor)} {unit}"
    return f"{four_digits(seconds * 1e9)} ns"


def _changing(row: Cells) -> str:
    return "" if pd.isna(row["repeatable"]) or row["repeatable"] else NOT_REPEATABLE


def _marks(row: Cells) -> str:
    if pd.isna(row["oversubscribed"]):
        return ""
    return marks(bool(row["oversubscribed"]), bool(row["degenerate"]), bool(row["shared"]))
