"""The charts of a report as figures and as files: one set per workload, and one over batch sizes."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from gpt_parallel.report.charts.bars import Data, breakdown, latency, looks, memory, throughput
from gpt_parallel.report.charts.batch_sizes import throughput_by_batch_size, tpot_by_batch_size
from gpt_parallel.report.charts.scaling import efficiency, scaling
from gpt_parallel.report.charts.tradeoff import pareto
from gpt_parallel.report.frame import single_device_cases
from gpt_parallel.report.saved_run import Case, SavedRun
from gpt_parallel.report.tables import captions
from gpt_parallel.schema.summary import CaseSummary

WIDE, NARROW = 7.5, 3.8  # inches: for print and large screens, and for phones, with the same font size
MOST_WORKLOADS = 4
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a name with a $ in it is a name
    "svg.hashsalt": "gpt_parallel",  # the same chart, the same bytes
}

# File name, title, and drawing function.
_PLOTS: dict[str, tuple[str, Callable[[Data], Figure | None]]] = {
    "throughput": ("Throughput", throughput),
    "throughput_per_gpu": ("Throughput per GPU", lambda data: throughput(data, per_gpu=True)),
    "latency": ("Latency", latency),
    "efficiency": ("Efficiency", efficiency),
    "scaling": ("Scaling", scaling),
    "pareto": ("Pareto", pareto),
    "memory": ("Memory", memory),
    "breakdown": ("Where the time goes", breakdown),
}
# The same for charts over several batch sizes.
_BATCH_PLOTS: dict[str, tuple[str, Callable[[Data], Figure | None]]] = {
    "throughput_by_batch_size": ("Throughput by batch size", throughput_by_batch_size),
    "tpot_by_batch_size": ("Time per output token by batch size", tpot_by_batch_size),
}


@dataclass(frozen=True)
class Chart:
    name: str
    title: str
    figure: Figure


@dataclass(frozen=True)
class ChartSet:
    """The charts of one workload, or of one workload with several batch sizes, and their captions."""

    captions: list[str]
    charts: list[Chart]


def draw_charts(run: SavedRun, width: float = WIDE) -> list[ChartSet]:
    """The charts of each of the first `MOST_WORKLOADS` workloads, then those over batch sizes of the first.

    Charts without data are left out.
    """
    measured = [(case, case.summary) for case in run.cases if case.summary and case.summary.throughput_tok_s]
    workloads: dict[str, list[tuple[Case, CaseSummary]]] = {}
    for case, summary in measured:
        if not summary.is_peer:
            workloads.setdefault(summary.workload_sha256, []).append((case, summary))
    look = looks([summary for rows in workloads.values() for _, summary in rows])
    single = single_device_cases(run)
    sets = []
    for number, (workload, rows) in enumerate(list(workloads.items())[:MOST_WORKLOADS], start=1):
        data = Data(rows, look, single.get(workload), width)
        sets.append(ChartSet(captions([summary for _, summary in rows]), _draw(data, _PLOTS, number)))
    rows = [row for rows in workloads.values() for row in rows]
    rows = [row for row in rows if row[1].work == rows[0][1].work]
    if len({summary.batch_size for _, summary in rows}) > 1:
        sets.append(
            ChartSet(captions([summary for _, summary in rows]), _draw(Data(rows, look, None, width), _BATCH_PLOTS, 1))
        )
    return sets


def _draw(data: Data, plots: dict[str, tuple[str, Callable[[Data], Figure | None]]], number: int) -> list[Chart]:
    charts = []
    with _style():
        for name, (title, plot) in plots.items():
            figure = plot(data)
            if figure is not None:
                charts.append(Chart(name if number == 1 else f"{name}_{number}", title, figure))
    return charts


def file_names() -> list[str]:
    """The names of all chart files that a report may contain."""
    numbers = ["", *(f"_{number}" for number in range(2, MOST_WORKLOADS + 1))]
    names = [*(f"{name}{number}" for name in _PLOTS for number in numbers), *_BATCH_PLOTS]
    return [f"{name}.{kind}" for name in names for kind in ("png", "svg")]


def save(chart: Chart, kind: str, caption: Sequence[str] = ()) -> bytes:
    """The chart as PNG or SVG bytes, with its caption below if the file stands alone."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None}}[kind]
    output = io.BytesIO()
    with _style():
        chart.figure.supxlabel("\n".join(caption), fontsize=6.5, color="#444444", x=0.01, ha="left")
        chart.figure.savefig(output, format=kind, dpi=144, metadata=metadata)
    return output.getvalue()


@contextmanager
def _style() -> Iterator[None]:
    """The style for drawing figures, and for saving them, which needs the same settings."""
    with matplotlib.rc_context(_STYLE):
        yield
