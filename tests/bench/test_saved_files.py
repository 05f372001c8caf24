"""What may be given as a saved run."""

import json

import pytest
from typer.testing import CliRunner

from gpt_parallel.bench.saved_files import load_runs
from gpt_parallel.cli import app
from gpt_parallel.report.saved_run import ReportError
from gpt_parallel.schema.run import MeshSpec
from tests.support.factories import bench, document, run_result, run_spec


@pytest.fixture
def save(tmp_path):
    def save(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return save


@pytest.fixture
def results(save):
    """The results of the same work under two strategies."""
    one = run_result(run_spec())
    two = run_result(run_spec(strategy="tensor_data_hybrid", mesh=MeshSpec(tp=2)))
    return [save(f"results/{name}/result.json", run.model_dump_json()) for name, run in (("one", one), ("two", two))]


def test_same_file_names_are_told_apart_by_their_paths(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(document(bench())))
    paths = [tmp_path / name / "run.json" for name in ("a", "b")]

    assert [run.label for run in load_runs(paths)] == [str(path) for path in paths]
    with pytest.raises(ReportError, match="the same file is given twice"):
        load_runs([paths[0], paths[0]])


def test_results_of_different_cases_are_one_run(results, tmp_path):
    for given in (results, [tmp_path / "results"]):
        (run,) = load_runs(given)

        assert run.label == "results"
        assert [case.name for case in run.cases] == [
            f"test_generation[{case.summary.strategy}-{case.summary.num_gpus}gpu]" for case in run.cases
        ]
        assert len({case.fullname for case in run.cases}) == 2


def test_results_of_the_same_case_are_runs_to_compare(save):
    text = run_result(run_spec()).model_dump_json()

    runs = load_runs([save("before/result.json", text), save("after/result.json", text)])

    assert [run.label for run in runs] == ["before", "after"]


def test_runs_keep_the_order_in_which_they_were_given(results, save):
    session = save("run.json", document(bench()))

    assert [run.label for run in load_runs([results[0], session])] == ["one", "run"]
    assert [run.label for run in load_runs([session, results[0]])] == ["run", "one"]


def test_a_report_directory_stands_for_its_benchmarks(save, tmp_path):
    save("reports/latest/benchmarks.json", document(bench()))

    (run,) = load_runs([tmp_path / "reports" / "latest"])

    assert run.label == "benchmarks"


def test_a_storage_stands_for_its_newest_run(save, tmp_path):
    for number in (9, 10, 2):
        save(f".benchmarks/Linux-CPython/{number:04}_run.json", document(bench()))

    (run,) = load_runs([tmp_path / ".benchmarks"])

    assert run.label == "0010_run"


def test_other_directories_are_refused_with_what_they_may_have(tmp_path):
    with pytest.raises(ReportError, match="a directory without saved runs; it may have benchmarks"):
        load_runs([tmp_path])


def test_a_broken_result_is_named(save):
    broken = json.loads(run_result(run_spec()).model_dump_json())
    broken["figures"] = 1
    path = save("out/result.json", broken)

    with pytest.raises(ReportError, match=f"{path}: figures = 1"):
        load_runs([path])


def test_report_and_gate_take_them(results, tmp_path):
    done = CliRunner().invoke(
        app, ["report", str(tmp_path / "results"), "--output-dir", str(tmp_path / "r"), "--format", "md"]
    )

    assert done.exit_code == 0, done.output
    assert "tensor_data_hybrid" in (tmp_path / "r" / "report.md").read_text()
    assert CliRunner().invoke(app, ["gate", str(results[0]), str(results[0])]).exit_code == 3
