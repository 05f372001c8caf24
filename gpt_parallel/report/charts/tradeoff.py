"""The chart of latency against throughput, with the Pareto front."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from gpt_parallel.base.escaping import plain
from gpt_parallel.report.charts.bars import MOST_BARS, Data, make_axes, wrap
from gpt_parallel.schema.summary import CaseSummary

_HALO = [withStroke(linewidth=2.5, foreground="white")]
_RANGE: dict[str, Any] = {"color": "black", "linewidth": 1, "zorder": 4}


class Tradeoff(NamedTuple):
    """A case by TPOT in ms and by tokens/s, each with its range: over launches, over rounds."""

    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    summary: CaseSummary


def _tradeoffs(data: Data) -> list[Tradeoff]:
    points = []
    for case, summary in data.rows:
        if summary.tpot_s is not None and summary.throughput_tok_s:
            times = [1000 * launch.tpot_s for launch in summary.launches if launch.tpot_s is not None]
            median = 1000 * summary.tpot_s
            rates = summary.output_tokens / case.stats.max, summary.output_tokens / case.stats.min
            times_range = min(times, default=median), max(times, default=median)
            points.append(Tradeoff(median, summary.throughput_tok_s, times_range, rates, summary))
    return points


def clusters_of(points: Sequence[Tradeoff], x_reach: float, y_reach: float) -> list[list[Tradeoff]]:
    """Groups of points whose symbols or numbers would overlap."""
    clusters: list[list[Tradeoff]] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        for cluster in clusters:
            if any(abs(point.x - p.x) <= x_reach and abs(point.y - p.y) <= y_reach for p in cluster):
                cluster.append(point)
                break
        else:
            clusters.append([point])
    return clusters


def pareto(data: Data) -> Figure | None:
    points = _tradeoffs(data)
    if len(points) < 2:
        return None
    figure, axes = make_axes(data, 4.2)
    _draw_front(axes, points)
    axes.hlines([p.y for p in points], *zip(*(p.x_range for p in points), strict=True), **_RANGE)
    axes.vlines([p.x for p in points], *zip(*(p.y_range for p in points), strict=True), **_RANGE)
    for name in dict.fromkeys(point.summary.strategy for point in points):
        look = data.looks[name]
        axes.scatter([], [], s=40, marker=look.marker, facecolor=look.colour, edgecolor="black", label=plain(name))
    wide, high = max(point.x for point in points), max(point.y for point in points)
    clusters = clusters_of(points, wide * 0.25 / data.width, high * 0.06)
    _draw_symbols(data, axes, clusters)
    if len(points) <= MOST_BARS:
        _draw_numbers(axes, clusters)
    axes.set_xlabel(
        wrap(
            data,
            "time per output token, ms (left is better; number: devices, hollow: oversubscribed, "
            "lines: range over launches and rounds)",
        )
    )
    axes.set_ylabel("tokens/s (up is better)")
    axes.margins(0.1)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title("Latency and throughput", loc="left")
    columns = 2 if data.width < 5 else 3
    figure.legend(loc="outside upper center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _draw_front(axes: Any, points: Sequence[Tradeoff]) -> None:
    front: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if not front or point.y > front[-1][1]:
            front.append((point.x, point.y))
    style = {"color": "#777777", "linestyle": "--", "linewidth": 1, "drawstyle": "steps-post"}
    axes.plot(*zip(*front, strict=True), label="Pareto front", **style)


def _draw_symbols(data: Data, axes: Any, clusters: Sequence[Sequence[Tradeoff]]) -> None:
    """Draw near points inside each other, the largest at the bottom."""
    groups: dict[tuple[float, str, bool], list[Tradeoff]] = {}
    for cluster in clusters:
        for rank, point in enumerate(reversed(cluster)):
            key = 40 * 1.9 ** min(rank, 3), point.summary.strategy, point.summary.oversubscribed
            groups.setdefault(key, []).append(point)
    for (size, strategy, is_hollow), points in groups.items():
        look = data.looks[strategy]
        face, edge = ("white", look.colour) if is_hollow else (look.colour, "black")
        places = [point.x for point in points], [point.y for point in points]
        axes.scatter(*places, s=size, marker=look.marker, facecolor=face, edgecolor=edge, zorder=3 - size / 1000)


def _draw_numbers(axes: Any, clusters: Sequence[Sequence[Tradeoff]]) -> None:
    """Write the device counts of each cluster once, above all symbols."""
    for cluster in clusters:
        place = max(point.x for point in cluster), max(point.y for point in cluster)
        counts = dict.fromkeys(str(point.summary.num_gpus) for point in cluster)
        style = {"fontsize": 8, "zorder": 5, "path_effects": _HALO}
        axes.annotate(", ".join(counts), place, (6, 5), textcoords="offset points", **style)
