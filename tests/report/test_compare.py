import pytest

from gpt_parallel.report.compare import compare
from gpt_parallel.report.load import ReportError
from tests.factories import bench, document, stats


def test_ratio_is_of_throughputs_with_its_interval(saved):
    base = saved("base", document(bench(throughputs=(100.0, 102.0, 98.0))))
    head = saved("head", document(bench(throughputs=(50.0, 51.0, 49.0))))

    (ratio,) = compare([base, head], None).ratios

    assert (ratio.run, ratio.base, ratio.value) == ("head", 100.0, 50.0)
    assert ratio.ratio == pytest.approx(0.5)
    assert ratio.interval[0] < 0.5 < ratio.interval[1]
    assert compare([base, head], "head").ratios[0].ratio == pytest.approx(2.0)


def test_one_launch_a_side_has_no_interval(saved):
    runs = [saved(name, document(bench())) for name in ("base", "head")]

    assert compare(runs, None).ratios[0].interval is None


def test_one_run_is_compared_with_nothing(saved):
    assert compare([saved("run", document(bench()))], None) is None


def test_an_unknown_baseline_is_refused(saved):
    with pytest.raises(ReportError, match="'nowhere': no such run; allowed: run"):
        compare([saved("run", document(bench()))], "nowhere")


@pytest.mark.parametrize("change", [{"device_name": "H100"}, {"workload_sha256": "cd" * 32}, {"verified": "skipped"}])
def test_what_does_not_compare_gets_no_ratio(change, saved):
    runs = [saved("base", document(bench())), saved("head", document(bench(**change)))]

    (ratio,) = compare(runs, None).ratios

    assert ratio.ratio is None
    assert ratio.problem


def test_new_missing_and_renamed_cases_are_told(saved):
    base = saved("base", document(bench("stays"), bench("old", mesh="x"), bench("goes", mesh="y")))
    head = saved("head", document(bench("stays"), bench("fresh", mesh="x"), bench("comes", mesh="z")))

    assert compare([base, head], None).changes == [
        "head: test_generation[old] was renamed to test_generation[fresh]",
        "head: test_generation[comes] is new",
        "head: test_generation[goes] is missing",
    ]


def test_plain_benchmarks_are_compared_by_their_times(saved):
    runs = []
    for name, seconds in (("base", 0.2), ("head", 0.1)):
        entry = {"name": "test_sort", "fullname": "test_sort.py::test_sort", "stats": stats([seconds])}
        runs.append(saved(name, document(entry)))

    assert compare(runs, None).ratios[0].ratio == pytest.approx(2.0)
