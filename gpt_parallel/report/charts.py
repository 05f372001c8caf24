"""The charts of a report: readable in print and by the colour-blind, and only of data that is there.

Colours are Okabe and Ito's ("Color Universal Design", 2008); strategies also differ in marker and hatch.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from gpt_parallel.report.load import Case, SavedRun
from gpt_parallel.report.metrics import single_device_cases, speedup_over
from gpt_parallel.result import CaseSummary
from gpt_parallel.table import captions
from gpt_parallel.text import plain

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
_MOST_BARS = 40  # beyond that a bar chart is not readable; the table has all cases
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a name with a $ in it is a name
    "svg.hashsalt": "gpt_parallel",  # the same chart, the same bytes
}

Rows = Sequence[tuple[Case, CaseSummary]]


def draw_charts(run: SavedRun) -> dict[str, Figure]:
    """Figures by file name, without those the run has no data for."""
    rows = [(case, case.summary) for case in run.cases if case.summary and case.summary.throughput_tok_s]
    if not rows:
        return {}
    looks = _looks(rows)
    single = single_device_cases(run)
    builders: dict[str, Callable[[], Figure | None]] = {
        "throughput": lambda: _throughput(rows, looks),
        "throughput_per_gpu": lambda: _throughput(rows, looks, per_gpu=True),
        "latency": lambda: _latency(rows, looks),
        "efficiency": lambda: _efficiency(rows, looks, single),
        "scaling": lambda: _scaling(rows, looks, single),
        "pareto": lambda: _pareto(rows, looks),
        "memory": lambda: _memory(rows, looks),
    }
    charts = {}
    with matplotlib.rc_context(_STYLE):
        for name, build in builders.items():
            figure = build()
            if figure is not None:
                _caption(figure, rows)
                charts[name] = figure
    return charts


@contextmanager
def chart_style() -> Iterator[None]:
    """Saving a figure needs the settings it was drawn with."""
    with matplotlib.rc_context(_STYLE):
        yield


def _looks(rows: Rows) -> dict[str, dict[str, Any]]:
    """Colour, marker and hatch of each strategy, in order of appearance."""
    names = list(dict.fromkeys(summary.strategy for _, summary in rows))
    ways = zip(cycle(_COLOURS), cycle(_MARKERS), cycle(_HATCHES), strict=False)
    return {
        name: dict(zip(("colour", "marker", "hatch"), way, strict=True)) for name, way in zip(names, ways, strict=False)
    }


def _caption(figure: Figure, rows: Rows) -> None:
    lines = "\n".join(captions([summary for _, summary in rows]))
    figure.supxlabel(lines, fontsize=6.5, color="#444444", x=0.01, ha="left")


def _label(summary: CaseSummary) -> str:
    marks = "*" * summary.oversubscribed + "†" * summary.degenerate
    return plain(f"{summary.strategy} · {summary.num_gpus}{marks}")


def _bars(rows: Rows, height_per_row: float = 0.3) -> tuple[Figure, Any]:
    figure = Figure(figsize=(7.5, 1.4 + height_per_row * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(rows)), [_label(summary) for _, summary in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    return figure, axes


def _throughput(rows: Rows, looks: dict[str, dict[str, Any]], per_gpu: bool = False) -> Figure | None:
    if len(rows) > _MOST_BARS:
        return None
    figure, axes = _bars(rows)
    for index, (case, summary) in enumerate(rows):
        share = summary.num_gpus if per_gpu else 1
        value = (summary.throughput_tok_s or 0.0) / share
        slow, fast = (summary.output_tokens / seconds / share for seconds in (case.stats.max, case.stats.min))
        look = looks[summary.strategy]
        axes.barh(index, value, color=look["colour"], hatch=look["hatch"], edgecolor="white", height=0.72)
        axes.plot([slow, fast], [index, index], color="black", linewidth=1.2, marker="|", markersize=6)
        axes.annotate(
            f"{value:,.1f}", (max(value, fast), index), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    what = "tokens/s per device" if per_gpu else "tokens/s"
    axes.set_xlabel(f"{what} (bar: median round, line: slowest to fastest round)")
    axes.set_title("Throughput per device" if per_gpu else "Throughput", loc="left")
    return figure


def _latency(rows: Rows, looks: dict[str, dict[str, Any]]) -> Figure | None:
    known = [(case, summary) for case, summary in rows if summary.ttft_s is not None]
    if not known or len(known) > _MOST_BARS:
        return None
    figure = Figure(figsize=(7.5, 1.5 + 0.3 * len(known)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(
        panels, ("ttft", "tpot"), ("Time to first token", "Time per output token"), strict=True
    ):
        for index, (_, summary) in enumerate(known):
            look = looks[summary.strategy]
            values = {kind: getattr(summary, f"{name}_{kind}s") for kind in ("", "p90_", "p99_")}
            shown = [seconds * 1000 for seconds in values.values() if seconds is not None]
            if shown:
                axes.plot(shown, [index] * len(shown), color=look["colour"], linewidth=1.5, zorder=1)
            for (kind, seconds), size in zip(values.items(), (36, 22, 22), strict=True):
                if seconds is not None:
                    face = look["colour"] if kind == "" else "white"
                    marker = {"": look["marker"], "p90_": "|", "p99_": "x"}[kind]
                    colours = {"color": look["colour"]} if kind else {"facecolor": face, "edgecolor": "black"}
                    axes.scatter(seconds * 1000, index, s=size, marker=marker, linewidths=1, zorder=2, **colours)
        axes.set_yticks(range(len(known)), [_label(summary) for _, summary in known])
        axes.set_title(title, loc="left")
        axes.set_xlabel("ms (symbol: median, | p90, × p99)", fontsize=8)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    panels[0].invert_yaxis()
    return figure


class _Point(NamedTuple):
    """A case on a curve: devices, value, and the values of its slowest and fastest round."""

    devices: int
    value: float
    low: float
    high: float
    oversubscribed: bool = False


def _curves(rows: Rows, single: dict[str, CaseSummary], per_device: bool) -> dict[str, list[_Point]]:
    """Per strategy: speed-up over one device (or efficiency in %) in order of devices; empty if there is none."""
    if len({summary.workload_sha256 for _, summary in rows}) > 1 or all(s.num_gpus == 1 for _, s in rows):
        return {}
    curves: dict[str, list[_Point]] = {}
    for case, summary in rows:
        speedup = speedup_over(summary, single.get(summary.workload_sha256))
        if speedup is None:
            return {}
        scale = speedup * (100 / summary.num_gpus if per_device else 1)
        low, high = (case.stats.median / seconds * scale for seconds in (case.stats.max, case.stats.min))
        curves.setdefault(summary.strategy, []).append(
            _Point(summary.num_gpus, scale, low, high, summary.oversubscribed)
        )
    return {name: sorted(points) for name, points in curves.items()}


def _draw_curves(title: str, label: str, curves: dict[str, list[_Point]], looks: dict[str, dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        look = looks[name]
        style = {"color": look["colour"], "marker": look["marker"], "markersize": 6, "markeredgecolor": "black"}
        counts, values = [point.devices for point in points], [point.value for point in points]
        axes.plot(counts, values, label=plain(name), linewidth=1.5, **style)
        axes.vlines(counts, [p.low for p in points], [p.high for p in points], color=look["colour"], linewidth=1)
        hollow = [point for point in points if point.oversubscribed]
        places = [point.devices for point in hollow], [point.value for point in hollow]
        axes.plot(*places, linestyle="", **{**style, "markerfacecolor": "white"})
    axes.set_xticks(sorted({point.devices for points in curves.values() for point in points}))
    axes.set_xlabel("devices (symbol: median, line: slowest to fastest round; hollow: oversubscribed)")
    axes.set_ylabel(label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_title(title, loc="left")
    return figure


def _draw_ideal(figure: Figure, counts: list[int], values: list[float]) -> None:
    axes = figure.axes[0]
    axes.plot(counts, values, color="#777777", linestyle="--", linewidth=1, label="ideal")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _scaling(rows: Rows, looks: dict[str, dict[str, Any]], single: dict[str, CaseSummary]) -> Figure | None:
    curves = _curves(rows, single, per_device=False)
    if not curves:
        return None
    # Every curve starts at the one device that all are measured against.
    one = _Point(1, 1.0, 1.0, 1.0)
    figure = _draw_curves(
        "Scaling",
        "speed-up over one device",
        {name: points if points[0].devices == 1 else [one, *points] for name, points in curves.items()},
        looks,
    )
    most = max(point.devices for points in curves.values() for point in points)
    _draw_ideal(figure, [1, most], [1, most])
    return figure


def _efficiency(rows: Rows, looks: dict[str, dict[str, Any]], single: dict[str, CaseSummary]) -> Figure | None:
    curves = _curves(rows, single, per_device=True)
    if not curves:
        return None
    figure = _draw_curves("Parallel efficiency", "parallel efficiency, %", curves, looks)
    most = max(point.devices for points in curves.values() for point in points)
    _draw_ideal(figure, [1, most], [100, 100])
    return figure


def _pareto(rows: Rows, looks: dict[str, dict[str, Any]]) -> Figure | None:
    points = [(s.tpot_s * 1000, s.throughput_tok_s, s) for _, s in rows if s.tpot_s is not None and s.throughput_tok_s]
    if len(points) < 2:
        return None
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    front: list[tuple[float, float]] = []
    for milliseconds, throughput, _ in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or throughput > front[-1][1]:
            front.append((milliseconds, throughput))
    axes.plot(
        *zip(*front, strict=True),
        color="#777777",
        linestyle="--",
        linewidth=1,
        drawstyle="steps-post",
        label="Pareto front",
    )
    named: set[str] = set()
    for milliseconds, throughput, summary in points:
        look = looks[summary.strategy]
        face = "white" if summary.oversubscribed else look["colour"]
        label = None if summary.strategy in named else plain(summary.strategy)
        named.add(summary.strategy)
        edge = look["colour"] if summary.oversubscribed else "black"
        axes.scatter(
            milliseconds, throughput, s=48, marker=look["marker"], facecolor=face, edgecolor=edge, label=label, zorder=3
        )
        if len(points) <= _MOST_BARS:
            axes.annotate(
                str(summary.num_gpus), (milliseconds, throughput), (6, 4), textcoords="offset points", fontsize=8
            )
    axes.set_xlabel("time per output token, ms (left is better)")
    axes.set_ylabel("tokens/s (up is better)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.margins(0.1)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_title("Latency and throughput (number: devices, hollow: oversubscribed)", loc="left")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _memory(rows: Rows, looks: dict[str, dict[str, Any]]) -> Figure | None:
    known = [(case, summary) for case, summary in rows if any(summary.peak_memory_bytes_by_rank)]
    if not known or len(known) > _MOST_BARS:
        return None
    figure, axes = _bars(known)
    for index, (_, summary) in enumerate(known):
        peaks = [peak / 2**20 for peak in summary.peak_memory_bytes_by_rank if peak is not None]
        held = (summary.max_parameter_bytes + summary.max_kv_cache_bytes) / 2**20
        look = looks[summary.strategy]
        axes.barh(index, held, color=look["colour"], hatch=look["hatch"], edgecolor="white", height=0.72)
        axes.scatter(peaks, [index] * len(peaks), marker="|", s=60, color="black", linewidths=1.2, zorder=3)
    axes.set_xlim(left=0)
    kind = "allocated" if known[0][1].device == "cuda" else "resident"
    axes.set_xlabel(f"MiB (bar: largest rank's parameters and KV cache; |: each rank's peak, {kind})")
    axes.set_title("Memory per rank", loc="left")
    return figure
