"""Files are read whole or refused by name."""

import json
import math

import pytest

from gpt_parallel.report.saved_run import ReportError, load_run
from tests.support.factories import bench, document, run_result, run_spec, stats


def test_reads_our_cases_and_plain_ones_alike(saved):
    plain = {"name": "test_sort", "fullname": "test_sort.py::test_sort", "group": None, "stats": stats([0.1, 0.2])}

    run = saved("run", document(bench(), plain))

    assert [case.name for case in run.cases] == ["test_generation[pure_data_parallel-1gpu]", "test_sort"]
    assert [case.summary is None for case in run.cases] == [False, True]
    assert (run.label, run.commit, run.branch, run.machine) == ("run", "0123456789abcdef", "main", "AMD EPYC, 2 cores")


def test_reads_what_an_older_pytest_benchmark_leaves_out(saved):
    """Version 4 files of a project outside git, on a machine py-cpuinfo knows nothing of."""
    entry = {"name": "t", "fullname": "t.py::t", "stats": {**stats([0.1]), "iqr": 0.0, "ld15iqr": 0.1}}

    run = saved("old", {"benchmarks": [entry], "machine_info": {"processor": "x86_64"}, "version": "4.0.0"})

    assert (run.commit, run.dirty, run.machine) == ("", False, "x86_64, ? cores")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(document(bench()))[:-40], "not valid JSON, perhaps truncated"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[]", "no list of benchmarks"),
        ('{"benchmarks": {}}', "no list of benchmarks"),
        (run_result(run_spec()).model_dump_json(), "this is a result.json of gpt-parallel run"),
        ('{"benchmarks": [7]}', "benchmarks 0: not a pytest-benchmark entry"),
        ('{"benchmarks": [{"name": "t", "fullname": "t"}]}', "benchmarks t: not a pytest-benchmark entry"),
        (json.dumps(document(bench(), bench())), "duplicate case"),
        (json.dumps(document(bench(), gpt_parallel={"not_run": [{"case": "a"}]})), "not_run 0: outcome"),
    ],
)
def test_an_unusable_file_is_named_with_what_is_wrong(content, message, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(content)

    with pytest.raises(ReportError, match=message) as raised:
        load_run(path)
    assert str(path) in str(raised.value)


def test_a_plain_benchmark_may_be_too_short_for_its_clock(saved):
    plain = {"name": "t", "fullname": "t.py::t", "stats": stats([0.0, 0.0, 0.1])}

    assert saved("run", document(bench(), plain)).cases[1].stats.min == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -1.0, "1", None])
def test_impossible_times_are_refused(value, save):
    broken = bench()
    broken["stats"]["median"] = value

    with pytest.raises(ReportError, match=r"pure_data_parallel-1gpu\]: median"):
        load_run(save("run", document(broken)))


@pytest.mark.parametrize(
    ("field", "value"), [("throughput_tok_s", math.nan), ("verified", "probably"), ("num_gpus", 0), ("launches", 3)]
)
def test_impossible_figures_are_refused(field, value, save):
    broken = bench()
    broken["extra_info"][field] = value

    with pytest.raises(ReportError, match=field):
        load_run(save("run", document(broken)))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, "1gpu.: schema_version 2 was made by a newer gpt_parallel, this one reads up to 1; use that version"),
        (0, "1gpu.: schema_version 0 is not one that this gpt_parallel reads"),
        (None, "1gpu.: has no schema_version"),
    ],
)
def test_cases_of_other_schemas_are_refused_by_name(version, message, save):
    broken = bench()
    broken["extra_info"] |= {"schema_version": version, "launches": "changed since then"}

    with pytest.raises(ReportError, match=message) as failure:
        load_run(save("run", document(broken)))
    assert str(failure.value).startswith(str(save("run", {})))
    assert len(failure.value.problems) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_gpus", "1"), ("rounds", True), ("git_dirty", "no"), ("launches", {}), ("model", 5)],
)
def test_nothing_is_taken_for_what_it_is_not(field, value, save):
    broken = bench()
    broken["extra_info"][field] = value

    with pytest.raises(ReportError, match=r"run\.json: benchmarks test_generation\[pure_data_parallel-1gpu\]: "):
        load_run(save("run", document(broken)))


@pytest.mark.parametrize("changes", [{"name": 5}, {"fullname": None}, {"name": ["x"]}])
def test_names_are_texts(changes, save):
    with pytest.raises(ReportError, match="not a pytest-benchmark entry"):
        load_run(save("run", document(bench() | changes)))


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ([], "gpt_parallel must be an object"),
        (None, "gpt_parallel must be an object"),
        ({"not_run": {}}, "not_run must be a list"),
        ({"not_run": ""}, "not_run must be a list"),
        ({"not_run": [{"case": "a", "outcome": "passed", "reason": ""}]}, "not_run 0: outcome = 'passed'"),
    ],
)
def test_what_was_not_run_is_not_lost(ours, message, save):
    with pytest.raises(ReportError, match=message):
        load_run(save("run", document(bench(), gpt_parallel=ours)))


def test_no_part_of_a_file_is_a_file(tmp_path):
    whole = json.dumps(document(bench())).encode()
    path = tmp_path / "run.json"

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ReportError, match=r"run\.json: not valid JSON, perhaps truncated"):
            load_run(path)


def test_many_cases_with_one_twice_are_looked_at_once(save):
    plain = [{"name": "t", "fullname": f"t{index}", "stats": stats([0.1])} for index in range(20_000)]

    with pytest.raises(ReportError, match="duplicate case 't19999'"):
        load_run(save("run", document(*plain, plain[-1])))


def test_what_users_add_to_extra_info_is_left_alone(saved):
    added = bench()
    added["extra_info"]["ticket"] = 1234

    assert saved("run", document(added)).cases[0].summary.num_gpus == 1


def test_absent_and_unreadable_files_are_named(tmp_path):
    with pytest.raises(ReportError, match=r"absent\.json: cannot be read"):
        load_run(tmp_path / "absent.json")
    with pytest.raises(ReportError, match="cannot be read"):
        load_run(tmp_path)
