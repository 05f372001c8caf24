"""What is drawn, and for which cases."""

import pytest
from matplotlib.collections import PathCollection

from gpt_parallel.report.charts.bars import looks
from gpt_parallel.report.charts.chart_set import MOST_WORKLOADS, draw_charts
from gpt_parallel.report.charts.tradeoff import Tradeoff, clusters_of
from tests.support.factories import bench, document, summary


def case(strategy, num_gpus, throughput, **changes):
    return bench(
        f"{strategy}-{num_gpus}gpu-{throughput}", (throughput,), strategy=strategy, num_gpus=num_gpus, **changes
    )


def names(chart_set):
    return [chart.name for chart in chart_set.charts]


def test_each_workload_has_charts_and_captions_of_its_own(saved):
    other = {"workload_sha256": "cd" * 32, "workload": "the other work"}

    first, second = draw_charts(
        saved("run", document(case("dp", 1, 100.0), case("dp", 1, 9.0, **other), case("tp", 2, 8.0, **other)))
    )

    assert names(first) == ["throughput", "throughput_per_gpu", "latency", "memory"]
    assert "scaling_2" in names(second)
    assert "pareto_2" in names(second)
    assert "8 requests" in first.captions[0]
    assert "the other work" in second.captions[0]
    assert [len(s.charts[0].figure.axes[0].get_yticks()) for s in (first, second)] == [1, 2]


def test_the_breakdown_is_drawn_of_cases_that_have_one(saved):
    shares = {"compute": 0.5, "communication": 0.1, "waiting": 0.25, "sampling": 0.05, "host": 0.1}
    parts = {f"breakdown_{part}": share for part, share in shares.items()}
    run = saved("run", document(case("dp", 1, 100.0), case("pp", 2, 150.0, **parts), case("tp", 2, 140.0, **parts)))

    (charts,) = draw_charts(run)

    (chart,) = [chart for chart in charts.charts if chart.name == "breakdown"]
    axes = chart.figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pp · 2", "tp · 2"]
    bars = {
        container.get_label(): [(bar.get_x(), bar.get_width()) for bar in container] for container in axes.containers
    }
    assert list(bars) == list(shares)
    assert bars["waiting"] == [(pytest.approx(60), pytest.approx(25))] * 2
    assert [bar[0] + bar[1] for bar in bars["host"]] == [pytest.approx(100)] * 2


def test_very_many_workloads_do_not_have_charts_each(saved):
    cases = [case("dp", 1, 100.0 + index, workload_sha256=f"{index:064}") for index in range(MOST_WORKLOADS + 1)]

    assert len(draw_charts(saved("run", document(*cases)))) == MOST_WORKLOADS


def test_many_strategies_look_different():
    ways = looks([summary(strategy=str(index)) for index in range(100)])

    assert len(set(ways.values())) == 100
    assert len({(way.colour, way.marker) for way in ways.values()}) == 35
    assert len({(way.colour, way.hatch) for way in ways.values()}) == 42


def tradeoff(x, y):
    return Tradeoff(x, y, (x, x), (y, y), summary())


def test_points_that_would_overprint_are_one_cluster():
    near, coincident, far = tradeoff(10.0, 50.0), tradeoff(10.2, 50.1), tradeoff(20.0, 50.0)

    assert clusters_of([near, far, coincident], 0.5, 1.0) == [[near, coincident], [far]]


@pytest.fixture
def pareto(saved):
    """The Pareto chart's axes of these cases."""

    def draw(*cases):
        (charts,) = draw_charts(saved("run", document(*cases)))
        return next(chart for chart in charts.charts if chart.name == "pareto").figure.axes[0]

    return draw


def test_coincident_points_share_a_number_and_show_one_inside_the_other(pareto):
    axes = pareto(case("tp", 2, 100.0), case("full", 2, 100.0), case("dp", 4, 99.99), case("dp", 1, 50.0))

    assert [text.get_text() for text in axes.texts] == ["2, 4", "1"]
    drawn = [each for each in axes.collections if isinstance(each, PathCollection)]
    symbols = [symbol for symbol in drawn if symbol.get_offsets().size]  # those without are the legend's
    sizes = [symbol.get_sizes()[0] for symbol in sorted(symbols, key=lambda symbol: symbol.get_zorder())]
    assert sizes == sorted(sizes, reverse=True), "the largest at the bottom"
    assert len(set(sizes)) == 3
    assert min(text.get_zorder() for text in axes.texts) > max(symbol.get_zorder() for symbol in symbols)


def test_pareto_shows_how_far_launches_and_rounds_spread(pareto):
    axes = pareto(bench("a", (90.0, 100.0, 110.0)), bench("b", (50.0,)))

    lines = [path.vertices.tolist() for drawn in axes.collections for path in drawn.get_paths() if len(path) == 2]
    assert [[1.0, 90.0], [1.0, 110.0]] in [[pytest.approx(end) for end in line] for line in lines]
    assert [[100 / 110, 100.0], [100 / 90, 100.0]] in [[pytest.approx(end) for end in line] for line in lines]


def sweep(**changes):
    return [
        case(strategy, count, 10.0 * size + count, batch_size=size, workload_sha256=f"{size:02}" * 32, **changes)
        for size in (1, 4, 16)
        for strategy, count in (("dp", 1), ("dp", 2), ("tp", 2))
    ]


def curves(chart):
    """The x and y values of each curve that is not a key of the legend."""
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in chart.figure.axes[0].lines]


def test_batch_sizes_have_a_curve_for_each_strategy_and_number_of_devices(saved):
    *workloads, batches = draw_charts(saved("run", document(*sweep())))

    assert len(workloads) == 3
    assert names(batches) == ["throughput_by_batch_size", "tpot_by_batch_size"]
    rates, times = map(curves, batches.charts)
    assert [sizes for sizes, _ in rates] == [[1, 4, 16]] * 3
    assert [values[-1] for _, values in rates] == [161.0, 162.0, 162.0]
    assert len(times) == 3
    keys = [text.get_text() for text in batches.charts[0].figure.legends[0].get_texts()]
    assert keys == ["dp", "tp", "1 device", "2 devices"]


def test_other_work_is_not_on_the_curves_over_batch_sizes(saved):
    other = case("dp", 1, 9.0, batch_size=64, model="another", workload_sha256="ff" * 32)

    *_, batches = draw_charts(saved("run", document(*sweep(), other)))

    assert all(sizes == [1, 4, 16] for sizes, _ in curves(batches.charts[0]))


def test_one_batch_size_has_no_curves(saved):
    run = saved("run", document(case("dp", 1, 9.0), case("dp", 2, 18.0)))

    assert not [name for chart_set in draw_charts(run) for name in names(chart_set) if "batch_size" in name]
