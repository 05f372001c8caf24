"""Whatever a result.json holds: it is one and stays one, or it is refused by name."""

import json

import pytest
from hypothesis import given

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.result_file import load_result
from gpt_parallel.bench.summarise import summarise
from tests.bench.test_figures import launch
from tests.fuzz.mutation import FUZZ, are_named, attempt, json_texts

RESULT = launch(1.0).model_dump(mode="json")


@FUZZ
@given(json_texts([RESULT]))
def test_a_result_is_read_or_refused(directory, content):
    path = directory / "result.json"
    path.write_bytes(content)

    result, problems = attempt(load_result, path)

    assert are_named(problems, f"{path}: ", f"result {path}: ")
    if result is not None:
        path.write_text(result.model_dump_json())
        assert load_result(path) == result


def test_what_is_broken_here_is_valid_as_it_is(directory):
    (directory / "result.json").write_text(json.dumps(RESULT))

    assert summarise([load_result(directory / "result.json")]).verified == RESULT["verification"]["status"]


@pytest.mark.parametrize("field", RESULT)
def test_no_field_may_be_of_another_kind(directory, field):
    path = directory / "result.json"
    path.write_text(json.dumps(RESULT | {field: 0.5}))

    with pytest.raises(SpecError, match=field):
        load_result(path)
