import json
import os

import pytest

from gpt_parallel.result import RunResult, load_result, write_atomically
from gpt_parallel.spec import SpecError
from tests.test_measure import launch


def test_survives_the_file_unchanged(tmp_path):
    result = launch(1.0)
    write_atomically(tmp_path / "deep" / "result.json", result.model_dump_json())

    assert load_result(tmp_path / "deep" / "result.json") == result


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
