import json
from pathlib import Path

import pytest

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.result_file import load_result
from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.report.saved_run import load_run
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.summary import CaseSummary
from tests.bench.test_figures import launch

# Fields of a case's row that older files do not have begin like this.
NEW = (
    *("imbalance", "mbu", "mfu", "cpu_share", "max_res", "max_pro"),
    *("gpu_", "energy_", "breakdown_", "unavail", "ttft_p95"),
)


def test_survives_the_file_unchanged(tmp_path):
    result = launch(1.0)
    write_atomically(tmp_path / "deep" / "result.json", result.model_dump_json())

    assert load_result(tmp_path / "deep" / "result.json") == result


def test_files_from_before_there_was_telemetry_still_load(tmp_path):
    data = launch(1.0).model_dump(mode="json")
    for new in ("gpus", "energy", "efficiency"):
        del data[new]
    for new in ("telemetry", "peak_rates", "breakdown"):
        del data["ranks"][0]["diagnostics"][new]
    for new in ("telemetry", "breakdown", "profile"):
        del data["spec"]["execution"][new]
    for new in ("imbalance", "imbalance_by_round"):
        del data["figures"][new]
    (tmp_path / "old.json").write_text(json.dumps(data))

    result = load_result(tmp_path / "old.json")

    assert result.ranks[0].diagnostics.telemetry is None
    row = summarise([result]).model_dump(mode="json")
    assert row["mbu"] is row["cpu_share"] is row["breakdown_waiting"] is None
    assert CaseSummary.model_validate({k: v for k, v in row.items() if not k.startswith(NEW)}).ttft_p95_s is None


def test_a_wrong_file_is_refused_by_name(tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(SpecError, match=r"result\.json: cannot be read"):
        load_result(path)
    path.write_text(launch(1.0).model_dump_json()[:-20])
    with pytest.raises(SpecError, match=r"result\.json: not valid JSON, perhaps truncated"):
        load_result(path)
    data = launch(1.0).model_dump(mode="json") | {"weights_origin": 99, "ranks": "none"}
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError) as failure:
        load_result(path)
    assert {problem.split(" = ")[0].split(": ")[1] for problem in failure.value.problems} == {"weights_origin", "ranks"}


@pytest.fixture
def refusal(tmp_path):
    """What is said of a changed result."""
    data = launch(1.0).model_dump(mode="json")

    def refusal(change):
        path = tmp_path / "result.json"
        changed = change(data)
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed), encoding="utf-8")
        with pytest.raises(SpecError) as failure:
            load_result(path)
        assert all(str(path) in problem for problem in failure.value.problems)
        return str(failure.value)

    return refusal


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (3, "schema_version 3 was made by a newer gpt_parallel, this one reads up to 2; use that version, or measure"),
        (10**30, "was made by a newer gpt_parallel"),
        (0, "schema_version 0 is not one that this gpt_parallel reads (1 to 2); measure again"),
        (-1, "schema_version -1 is not one"),
        (True, "schema_version True is not one"),
        ("1", "schema_version '1' is not one"),
        (1.0, "schema_version 1.0 is not one"),
        (None, "has no schema_version; this gpt_parallel reads versions up to 2"),
    ],
)
def test_other_schemas_are_refused_by_name_before_all_else(refusal, version, message):
    found = refusal(lambda data: {**data, "schema_version": version, "ranks": "changed since then"})

    assert message in found
    assert "\n" not in found


def test_a_result_without_a_schema_is_none(refusal):
    assert "has no schema_version" in refusal(lambda data: {"spec": data["spec"]})
    assert "must hold an object" in refusal(lambda data: [data])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data | {"weights_origin": None}, "weights_origin = None: must be text"),
        (lambda data: data | {"outputs": [{"request_id": "0", "tokens": []}]}, "outputs.0.request_id = '0'"),
        (lambda data: data | {"outputs": [{"request_id": True, "tokens": []}]}, "outputs.0.request_id = True"),
        (lambda data: data | {"figures": {"throughput_tok_s": float("nan")}}, "NaN is not a JSON number"),
        (lambda data: data | {"figures": {"throughput_tok_s": 10**400}}, "throughput_tok_s"),
        (lambda data: data | {"surprise": "x" * 10_000}, "surprise = 'xxxx"),
        (lambda data: '{"schema_version": 2, ' + json.dumps(data)[1:], "duplicate key 'schema_version'"),
    ],
)
def test_what_no_run_writes_is_refused(refusal, change, message):
    found = refusal(change)

    assert message in found
    assert len(found) < 600


def test_no_part_of_a_result_is_a_result(tmp_path):
    whole = launch(1.0).model_dump_json().encode()
    path = tmp_path / "result.json"

    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SpecError, match=r"result\.json: not valid JSON, perhaps truncated"):
            load_result(path)


def test_json_has_no_nan():
    assert "NaN" not in launch(1.0).model_dump_json()
    assert RunResult.model_validate_json(launch(1.0).model_dump_json()).figures.itl_s is not None


EARLIER = Path(__file__).parent / "earlier"


def test_a_result_of_version_1_is_read_as_it_was():
    """Written before ranks' reports had sections, and sizes names for all families of models."""
    written = json.loads((EARLIER / "result_1.json").read_text())

    result = load_result(EARLIER / "result_1.json")

    assert result.schema_version == 2
    assert result.spec.model.architecture.hidden_size == written["spec"]["model"]["architecture"]["n_embd"] == 160
    assert [rank.place.shard for rank in result.ranks] == [0, 1]
    for rank, flat in zip(result.ranks, written["ranks"], strict=True):
        assert rank.holding.parameter_bytes == flat["parameter_bytes"] > 0
        assert list(rank.holding.layers) == flat["layers"]
        assert rank.rounds[0].seconds == flat["rounds"][0]["seconds"]
        assert len(rank.generated.collectives) == len(flat["collectives"]) > 0
        assert rank.diagnostics.breakdown.wall_s == flat["breakdown"]["wall_s"]
        assert rank.diagnostics.phase_seconds == flat["phase_seconds"]
    assert summarise([result]).throughput_tok_s == written["figures"]["throughput_tok_s"]


def test_what_is_wrong_in_a_result_of_version_1_is_named(tmp_path):
    written = json.loads((EARLIER / "result_1.json").read_text())
    written["ranks"][1]["num_heads"] = "two"
    (tmp_path / "r.json").write_text(json.dumps(written))

    with pytest.raises(SpecError, match=r"ranks.1.holding.num_heads = 'two': must be an integer"):
        load_result(tmp_path / "r.json")


def test_cases_saved_before_compare_with_those_of_today(tmp_path):
    """Their digest of the work is the same, so a gate may have them as its base."""
    base = load_run(EARLIER / "benchmarks_1.json")
    workload = {"num_samples": "2", "max_length": "3", "prompt_tokens": "5", "num_iterations": "1"}
    suite = Suite(make_settings("smoke", {"device": "cpu", **workload}))

    case = summarise([suite.run(suite.spec("pure_data_parallel", 1))])

    assert case.workload_sha256 == base.cases[0].summary.workload_sha256
    assert base.cases[0].summary.breakdown_compute > 0
