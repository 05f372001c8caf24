"""Speed-up and parallel efficiency over the number of devices, a curve for each strategy."""

from typing import NamedTuple

from matplotlib.figure import Figure

from gpt_parallel.base.escaping import plain
from gpt_parallel.report.charts.bars import Data, make_axes, wrap
from gpt_parallel.report.frame import speedup_over


class _Point(NamedTuple):
    """A case on a curve: devices, value, and the values of its slowest and fastest round."""

    devices: int
    value: float
    low: float
    high: float
    oversubscribed: bool = False


def _curves(data: Data, per_device: bool) -> dict[str, list[_Point]]:
    """Per strategy: speed-up over one device (or efficiency in %) in order of devices; empty if there is none."""
    if all(summary.num_gpus == 1 for _, summary in data.rows):
        return {}
    curves: dict[str, list[_Point]] = {}
    for case, summary in data.rows:
        speedup = speedup_over(summary, data.single)
        if speedup is None:
            return {}
        scale = speedup * (100 / summary.num_gpus if per_device else 1)
        low, high = (case.stats.median / seconds * scale for seconds in (case.stats.max, case.stats.min))
        point = _Point(summary.num_gpus, scale, low, high, summary.oversubscribed)
        curves.setdefault(summary.strategy, []).append(point)
    return {name: sorted(points) for name, points in curves.items()}


def _draw_curves(data: Data, title: str, label: str, curves: dict[str, list[_Point]], ideal: list[float]) -> Figure:
    figure, axes = make_axes(data, 4.2)
    for name, points in curves.items():
        look = data.looks[name]
        style = {"color": look.colour, "marker": look.marker, "markersize": 6, "markeredgecolor": "black"}
        counts, values = [point.devices for point in points], [point.value for point in points]
        axes.plot(counts, values, label=plain(name), linewidth=1.5, **style)
        axes.vlines(counts, [p.low for p in points], [p.high for p in points], color=look.colour, linewidth=1)
        hollow = [point for point in points if point.oversubscribed]
        places = [point.devices for point in hollow], [point.value for point in hollow]
        axes.plot(*places, linestyle="", **{**style, "markerfacecolor": "white"})
    devices = sorted({point.devices for points in curves.values() for point in points})
    axes.set_xticks(devices)
    axes.plot([1, devices[-1]], ideal, color="#777777", linestyle="--", linewidth=1, label="ideal")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    axes.set_xlabel(wrap(data, "devices (symbol: median, line: slowest to fastest round; hollow: oversubscribed)"))
    axes.set_ylabel(label)
    axes.set_title(title, loc="left")
    return figure


def scaling(data: Data) -> Figure | None:
    curves = _curves(data, per_device=False)
    if not curves:
        return None
    # Every curve starts at one device, the reference of the speed-up.
    one = _Point(1, 1.0, 1.0, 1.0)
    curves = {name: points if points[0].devices == 1 else [one, *points] for name, points in curves.items()}
    most = max(point.devices for points in curves.values() for point in points)
    return _draw_curves(data, "Scaling", "speed-up over one device", curves, [1, most])


def efficiency(data: Data) -> Figure | None:
    curves = _curves(data, per_device=True)
    return _draw_curves(data, "Parallel efficiency", "parallel efficiency, %", curves, [100, 100]) if curves else None
