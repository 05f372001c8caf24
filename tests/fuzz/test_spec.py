"""Whatever a spec or settings are made of: they are valid, or every problem is a sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.settings import PRESETS, Settings, make_settings
from gpt_parallel.schema.run import RunSpec
from tests.fuzz.mutation import FUZZ, are_named, attempt, hostile, mutated, values
from tests.support.factories import run_spec

SPECS = [run_spec().model_dump(mode="json"), run_spec(strategy="full_model_parallel").model_dump(mode="json")]


def run_spec_of(value):
    try:
        return RunSpec.model_validate(value)
    except ValidationError as error:
        raise SpecError.from_validation(error) from error


@FUZZ
@given(mutated(SPECS) | values)
def test_a_run_spec_is_valid_or_refused(value):
    spec, problems = attempt(run_spec_of, value)

    assert are_named(problems, "")
    if spec is not None:
        assert RunSpec.model_validate_json(spec.model_dump_json()) == spec
        assert spec.single_device().mesh.size == 1


@FUZZ
@given(
    st.sampled_from([*PRESETS, "none"]),
    st.dictionaries(st.sampled_from([*Settings.model_fields, "x"]), hostile | st.text().map(str.strip), max_size=4),
    st.dictionaries(st.sampled_from([*Settings.model_fields]), values, max_size=2),
)
def test_settings_are_valid_or_refused(preset, given, configured):
    settings, problems = attempt(make_settings, preset, given, configured)

    assert are_named(problems, "")
    if settings is not None:
        assert Settings.model_validate(settings.model_dump()) == settings
        assert isinstance(settings.strategies + settings.device_counts, tuple)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_broken_here_is_valid_as_it_is(spec):
    assert run_spec_of(spec).model_dump(mode="json") == spec
