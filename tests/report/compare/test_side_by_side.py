import pytest

from gpt_parallel.report.columns import COMPARISON, comparison_cells, duration
from gpt_parallel.report.compare.side_by_side import compare
from gpt_parallel.report.saved_run import ReportError
from tests.support.factories import bench, document, stats


def plain(seconds, name="test_sort"):
    return {"name": name, "fullname": f"test_sort.py::{name}", "stats": stats([seconds])}


def ratios(comparison, run="head"):
    return [row for row in comparison.rows if row.run.label == run]


def quoted(comparison):
    """The side-by-side table's rows by heading."""
    headings = [heading for heading, _ in COMPARISON]
    return [dict(zip(headings, comparison_cells(row, comparison.baseline), strict=True)) for row in comparison.rows]


def test_ratio_is_of_what_is_shown_with_its_interval(saved):
    """Launches this uneven have a median far from their mean."""
    base = saved("base", document(bench(throughputs=(100.0, 400.0, 100.0))))
    head = saved("head", document(bench(throughputs=(50.0, 50.0, 400.0))))

    comparison = compare([base, head], None)

    before, after = comparison.rows
    assert (before.run.label, after.run.label) == ("base", "head")
    assert before.value == pytest.approx(158.74, rel=1e-4)
    assert after.ratio == pytest.approx(after.value / before.value)
    assert after.interval[0] < after.ratio < after.interval[1]
    assert ratios(compare([base, head], "head"), "base")[0].ratio == pytest.approx(before.value / after.value)
    assert [row["measured"] for row in quoted(comparison)] == ["158.7 tokens/s", "100 tokens/s"]
    assert [row["÷ baseline"] for row in quoted(comparison)] == ["baseline", "0.630×"]


def test_one_launch_on_a_side_has_no_interval(saved):
    base, head = saved("base", document(bench(throughputs=(100.0,) * 3))), saved("head", document(bench()))

    comparison = compare([base, head], None)

    assert ratios(comparison)[0].interval is None
    assert [row["launches"] for row in quoted(comparison)] == ["3", "1"]
    assert quoted(comparison)[1]["95 % interval"] == "needs 2 launches a side"


def test_runs_stand_side_by_side_case_by_case(saved):
    commits = {"a": "main", "b": "faster", "c": "slower"}
    runs = [
        saved(name, document(bench("x"), bench("y"), commit_info={"id": 40 * name, "branch": branch, "dirty": True}))
        for name, branch in commits.items()
    ]

    rows = quoted(compare(runs, "b"))

    assert [(row["case"][-2], row["run"]) for row in rows] == [(case, run) for case in "xy" for run in "abc"]
    assert [row["commit"] for row in rows[:3]] == [12 * name + "-dirty" for name in "abc"]
    assert [row["branch"] for row in rows[:3]] == ["main", "faster", "slower"]
    assert {row["machine"] for row in rows} == {"AMD EPYC, 2 cores"}
    assert [row["÷ baseline"] for row in rows[:3]] == ["1.000×", "baseline", "1.000×"]


def test_one_run_is_compared_with_nothing(saved):
    assert compare([saved("run", document(bench()))], None) is None


def test_an_unknown_baseline_is_refused(saved):
    with pytest.raises(ReportError, match="'nowhere': no such run; allowed: run"):
        compare([saved("run", document(bench()))], "nowhere")


@pytest.mark.parametrize(
    "change",
    [
        {"device_name": "H100"},
        {"workload_sha256": "cd" * 32},
        {"verified": "skipped"},
        {"oversubscribed": True},
        {"hostname": "bench-2"},
    ],
)
def test_what_does_not_compare_gets_no_ratio(change, saved):
    runs = [saved("base", document(bench())), saved("head", document(bench(**change)))]

    (row,) = ratios(compare(runs, None))

    assert row.ratio is None
    assert row.problem
    assert (compare(runs, None, allow_other_host=True).rows[1].ratio is None) == ("hostname" not in change)


def test_new_missing_and_renamed_cases_are_told(saved):
    base = saved("base", document(bench("stays"), bench("old", mesh="x"), bench("goes", mesh="y")))
    head = saved("head", document(bench("stays"), bench("fresh", mesh="x"), bench("comes", mesh="z", torch="2.14")))

    assert compare([base, head], None).changes == [
        "head: test_generation[old] was renamed to test_generation[fresh]",
        "head: test_generation[comes] is new",
        "head: test_generation[goes] is missing",
    ]


def test_another_torch_is_told(saved):
    runs = [saved("base", document(bench("a"), bench("b")))]
    runs.append(saved("head", document(bench("a", torch="2.14"), bench("b", torch="2.14"))))

    assert compare(runs, None).changes == ["head: base and head differ in torch: 2.13.0+cpu and 2.14"]


def test_plain_benchmarks_are_compared_by_their_times(saved):
    runs = [saved(name, document(plain(seconds))) for name, seconds in (("base", 0.2), ("head", 0.1))]

    comparison = compare(runs, None)

    assert ratios(comparison)[0].ratio == pytest.approx(0.5)
    assert [row["measured"] for row in quoted(comparison)] == ["200 ms", "100 ms"]
    assert [row["launches"] for row in quoted(comparison)] == ["–", "–"]


@pytest.mark.parametrize(
    ("machine", "problem"),
    [
        (
            {"node": "bench-1", "cpu": {"brand_raw": "Xeon", "count": 2}},
            "differ in machine: AMD EPYC, 2 cores and Xeon",
        ),
        ({"node": "bench-2", "cpu": {"brand_raw": "AMD EPYC", "count": 2}}, "differ in host: bench-1 and bench-2"),
    ],
)
def test_plain_benchmarks_of_two_machines_get_no_ratio(machine, problem, saved):
    runs = [saved("base", document(plain(0.2))), saved("head", document(plain(0.1), machine_info=machine))]

    (row,) = ratios(compare(runs, None))

    assert row.ratio is None
    assert problem in row.problem


def test_a_time_too_short_for_its_clock_has_no_ratio(saved):
    runs = [saved("base", document(plain(0.0))), saved("head", document(plain(0.1)))]

    (row,) = ratios(compare(runs, None))

    assert (row.ratio, row.problem) == (None, "not timed")


def test_durations_are_in_the_unit_that_suits():
    assert [duration(seconds) for seconds in (12345.6, 1.5, 0.25, 3e-6, 4.5e-9)] == [
        *("12,346 s", "1.5 s", "250 ms", "3 µs", "4.5 ns")
    ]
