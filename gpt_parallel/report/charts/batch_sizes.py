"""Throughput and time per token over the batch size, a curve for each strategy and number of devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gpt_parallel.base.escaping import plain
from gpt_parallel.report.charts.bars import Data, make_axes, wrap
from gpt_parallel.report.saved_run import Case
from gpt_parallel.schema.summary import CaseSummary

_LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # one per number of devices


class _Point(NamedTuple):
    """A case on a curve: batch size, value, and the values of its slowest and fastest round or launch."""

    batch_size: int
    value: float
    low: float
    high: float


def throughput_by_batch_size(data: Data) -> Figure | None:
    return _draw(data, "Throughput by batch size", "tokens/s", _throughput)


def tpot_by_batch_size(data: Data) -> Figure | None:
    return _draw(data, "Time per output token by batch size", "time per output token, ms", _tpot)


def _throughput(case: Case, summary: CaseSummary) -> _Point | None:
    if not summary.throughput_tok_s:
        return None
    low, high = (summary.output_tokens / seconds for seconds in (case.stats.max, case.stats.min))
    return _Point(summary.batch_size, summary.throughput_tok_s, low, high)


def _tpot(case: Case, summary: CaseSummary) -> _Point | None:
    if summary.tpot_s is None:
        return None
    times = [launch.tpot_s * 1000 for launch in summary.launches if launch.tpot_s is not None]
    value = summary.tpot_s * 1000
    return _Point(summary.batch_size, value, min(times, default=value), max(times, default=value))


def _draw(data: Data, title: str, label: str, point_of: Callable[[Case, CaseSummary], _Point | None]) -> Figure | None:
    curves: dict[tuple[str, int], list[_Point]] = {}
    for case, summary in data.rows:
        if (point := point_of(case, summary)) is not None:
            curves.setdefault((summary.strategy, summary.num_gpus), []).append(point)
    if all(len(points) < 2 for points in curves.values()):
        return None
    counts = sorted({num_gpus for _, num_gpus in curves})
    lines = {num_gpus: _LINES[index % len(_LINES)] for index, num_gpus in enumerate(counts)}
    figure, axes = make_axes(data, 4.2)
    for (strategy, num_gpus), points in curves.items():
        points.sort()
        look, sizes = data.looks[strategy], [point.batch_size for point in points]
        style = {"color": look.colour, "marker": look.marker, "markersize": 6, "markeredgecolor": "black"}
        axes.plot(sizes, [point.value for point in points], linestyle=lines[num_gpus], linewidth=1.5, **style)
        axes.vlines(sizes, [p.low for p in points], [p.high for p in points], color=look.colour, linewidth=1)
    sizes = sorted({point.batch_size for points in curves.values() for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(wrap(data, "requests per batch and replica (line: range over rounds or launches)"))
    axes.set_ylabel(label)
    axes.set_title(title, loc="left")
    keys = [*_strategy_keys(data, [strategy for strategy, _ in curves]), *_count_keys(counts, lines)]
    figure.legend(handles=keys, loc="outside upper center", ncols=2 if data.width < 5 else 3, frameon=False, fontsize=8)
    return figure


def _strategy_keys(data: Data, strategies: Sequence[str]) -> list[Line2D]:
    names = dict.fromkeys(strategies)
    looks = [(name, data.looks[name]) for name in names]
    return [
        Line2D([], [], color=look.colour, marker=look.marker, markeredgecolor="black", label=plain(name))
        for name, look in looks
    ]


def _count_keys(counts: Sequence[int], lines: dict[int, Any]) -> list[Line2D]:
    words = {count: f"{count} device{'s' * (count > 1)}" for count in counts}
    return [Line2D([], [], color="#555555", linestyle=lines[count], label=words[count]) for count in counts]
