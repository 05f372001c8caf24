import json
import os

import pytest

from gpt_parallel.case import summarise
from gpt_parallel.result import CaseSummary, RunResult, load_result, write_atomically
from gpt_parallel.spec import SpecError
from tests.test_measure import launch

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
        del data["ranks"][0][new]
    for new in ("telemetry", "breakdown", "profile"):
        del data["spec"]["execution"][new]
    for new in ("imbalance", "imbalance_by_round"):
        del data["figures"][new]
    (tmp_path / "old.json").write_text(json.dumps(data))

    result = load_result(tmp_path / "old.json")

    assert result.ranks[0].telemetry is None
    row = summarise([result]).model_dump(mode="json")
    assert row["mbu"] is row["cpu_share"] is row["breakdown_waiting"] is None
    assert CaseSummary.model_validate({k: v for k, v in row.items() if not k.startswith(NEW)}).ttft_p95_s is None


def test_a_wrong_file_is_refused_by_name(tmp_path):
    path = tmp_path / "result.json"
    with pytest.raises(SpecError, match=r"result\.json: cannot be read"):
        load_result(path)
    path.write_text(launch(1.0).model_dump_json()[:-20])
    with pytest.raises(SpecError, match=r"result\.json: Invalid JSON"):
        load_result(path)
    data = launch(1.0).model_dump(mode="json") | {"schema_version": 99, "ranks": "none"}
    path.write_text(json.dumps(data))
    with pytest.raises(SpecError) as failure:
        load_result(path)
    assert {problem.split(" = ")[0].split(": ")[1] for problem in failure.value.problems} == {"schema_version", "ranks"}


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_for_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "result.json", "text")
    finally:
        os.umask(before)

    assert (tmp_path / "result.json").stat().st_mode & 0o777 == 0o640


def test_json_has_no_nan():
    assert "NaN" not in launch(1.0).model_dump_json()
    assert RunResult.model_validate_json(launch(1.0).model_dump_json()).figures.itl_s is not None
