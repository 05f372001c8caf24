"""Bar charts and what all charts share. They are readable in print and for colour-blind readers.

Colours are Okabe and Ito's ("Color Universal Design", 2008); strategies also differ in marker and hatch.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from gpt_parallel.base.escaping import plain
from gpt_parallel.report.saved_run import Case
from gpt_parallel.report.tables import marks, shares
from gpt_parallel.schema.summary import CaseSummary
from gpt_parallel.schema.telemetry import BREAKDOWN_PARTS

# Lengths without a common divisor, so 210 strategies differ in at least one of the three.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++")
MOST_BARS = 40  # beyond that a bar chart is not readable; the table has all cases


class Look(NamedTuple):
    colour: str
    marker: str
    hatch: str


@dataclass(frozen=True)
class Data:
    """The cases of one workload, the look of each strategy, the one-device case, and the width of charts in inches."""

    rows: Sequence[tuple[Case, CaseSummary]]
    looks: dict[str, Look]
    single: CaseSummary | None
    width: float


def looks(summaries: Sequence[CaseSummary]) -> dict[str, Look]:
    """Colour, marker and hatch of each strategy, in order of appearance."""
    names = dict.fromkeys(summary.strategy for summary in summaries)
    ways = zip(cycle(_COLOURS), cycle(_MARKERS), cycle(_HATCHES), strict=False)
    return {name: Look(*way) for name, way in zip(names, ways, strict=False)}


def wrap(data: Data, text: str) -> str:
    return textwrap.fill(text, int(data.width * 9))


def _label(summary: CaseSummary) -> str:
    known = marks(summary.oversubscribed, summary.degenerate, summary.shared)
    return plain(f"{summary.strategy} · {summary.num_gpus}{known}")


def make_axes(data: Data, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(data.width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#dddddd", linewidth=0.6)
    return figure, axes


def _bars(data: Data, summaries: Sequence[CaseSummary]) -> tuple[Figure, Any]:
    figure, axes = make_axes(data, 1.4 + 0.3 * len(summaries))
    axes.set_yticks(range(len(summaries)), [_label(summary) for summary in summaries])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return figure, axes


def _bar(axes: Any, index: int, value: float, look: Look) -> None:
    axes.barh(index, value, color=look.colour, hatch=look.hatch, edgecolor="white", height=0.72)


def throughput(data: Data, per_gpu: bool = False) -> Figure | None:
    if len(data.rows) > MOST_BARS:
        return None
    figure, axes = _bars(data, [summary for _, summary in data.rows])
    for index, (case, summary) in enumerate(data.rows):
        share = summary.num_gpus if per_gpu else 1
        value = (summary.throughput_tok_s or 0.0) / share
        slow, fast = (summary.output_tokens / seconds / share for seconds in (case.stats.max, case.stats.min))
        _bar(axes, index, value, data.looks[summary.strategy])
        axes.plot([slow, fast], [index, index], color="black", linewidth=1.2, marker="|", markersize=6)
        axes.annotate(
            f"{value:,.1f}", (max(value, fast), index), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    what = "tokens/s per device" if per_gpu else "tokens/s"
    axes.set_xlabel(wrap(data, f"{what} (bar: median round, line: slowest to fastest round)"))
    axes.set_title("Throughput per device" if per_gpu else "Throughput", loc="left")
    return figure


def latency(data: Data) -> Figure | None:
    known = [summary for _, summary in data.rows if summary.ttft_s is not None]
    if not known or len(known) > MOST_BARS:
        return None
    is_narrow = data.width < 5
    height = 1.5 + 0.3 * len(known)
    figure = Figure(figsize=(data.width, height * (2 if is_narrow else 1)), layout="constrained")
    panels = figure.subplots(*((2, 1) if is_narrow else (1, 2)), sharey=True)
    for axes, name, title in zip(
        panels, ("ttft", "tpot"), ("Time to first token", "Time per output token"), strict=True
    ):
        for index, summary in enumerate(known):
            _draw_percentiles(axes, index, summary, name, data.looks[summary.strategy])
        axes.set_yticks(range(len(known)), [_label(summary) for summary in known])
        axes.set_title(title, loc="left")
        axes.set_xlabel("ms (symbol: median, | p90, × p99)", fontsize=8)
        axes.set_xlim(left=0)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    panels[0].invert_yaxis()
    return figure


def _draw_percentiles(axes: Any, index: int, summary: CaseSummary, name: str, look: Look) -> None:
    """Draw a case's known median, p90 and p99 on one line."""
    values = {kind: getattr(summary, f"{name}_{kind}s") for kind in ("", "p90_", "p99_")}
    known = {kind: seconds * 1000 for kind, seconds in values.items() if seconds is not None}
    axes.plot(list(known.values()), [index] * len(known), color=look.colour, linewidth=1.5, zorder=1)
    for kind, milliseconds in known.items():
        if kind == "":
            axes.scatter(milliseconds, index, s=36, marker=look.marker, facecolor=look.colour, edgecolor="black")
        else:
            marker = {"p90_": "|", "p99_": "x"}[kind]
            axes.scatter(milliseconds, index, s=22, marker=marker, linewidths=1, zorder=2, color=look.colour)


def memory(data: Data) -> Figure | None:
    known = [summary for _, summary in data.rows if any(summary.peak_memory_bytes_by_rank)]
    if not known or len(known) > MOST_BARS:
        return None
    figure, axes = _bars(data, known)
    for index, summary in enumerate(known):
        peaks = [peak / 2**20 for peak in summary.peak_memory_bytes_by_rank if peak is not None]
        held = (summary.max_parameter_bytes + summary.max_kv_cache_bytes) / 2**20
        _bar(axes, index, held, data.looks[summary.strategy])
        axes.scatter(peaks, [index] * len(peaks), marker="|", s=60, color="black", linewidths=1.2, zorder=3)
    axes.set_xlim(left=0)
    kind = "allocated" if known[0].device == "cuda" else "resident"
    text = f"MiB (bar: largest rank's parameters and KV cache; |: each rank's peak, {kind})"
    axes.set_xlabel(wrap(data, text))
    axes.set_title("Memory per rank", loc="left")
    return figure


def breakdown(data: Data) -> Figure | None:
    """A stacked bar for each case: the parts of an extra pass, over all ranks."""
    known = [(summary, parts) for _, summary in data.rows if (parts := shares(summary))]
    if not known or len(known) > MOST_BARS:
        return None
    figure, axes = _bars(data, [summary for summary, _ in known])
    for number, part in enumerate(BREAKDOWN_PARTS):
        widths = [parts[part] * 100 for _, parts in known]
        starts = [sum(parts[before] for before in BREAKDOWN_PARTS[:number]) * 100 for _, parts in known]
        style = {"color": _COLOURS[number], "hatch": _HATCHES[number], "edgecolor": "white", "height": 0.72}
        axes.barh(range(len(known)), widths, left=starts, label=part, **style)
    axes.set_xlim(0, 100)
    axes.set_xlabel(wrap(data, "% of all ranks' time in one extra pass (waiting: for peers; host: what is left)"))
    axes.set_title("Where the time goes", loc="left")
    columns = 3 if data.width < 5 else len(BREAKDOWN_PARTS)
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    return figure
