"""What was probably meant."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.suggestions import did_you_mean
from gpt_parallel.inputs.settings import PRESETS, make_settings
from gpt_parallel.layout.strategies import STRATEGIES, check_known

DTYPES = ("auto", "float32", "bfloat16", "float16")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *[("fp16", "float16"), ("FP16", "float16"), ("half", "float16"), ("torch.float16", "float16")],
        *[("bf16", "bfloat16"), ("fp32", "float32"), ("flaot16", "float16"), ("torch.bfloat16", "bfloat16")],
    ],
)
def test_number_types(given, meant):
    assert did_you_mean(given, DTYPES) == f"; did you mean {meant!r}?"
    with pytest.raises(SpecError, match=f"dtype = {given!r}: must be .* or 'float16'; did you mean {meant!r}\\?"):
        make_settings("smoke", {"dtype": given})


@pytest.mark.parametrize("given", ["int8", "", "x" * 1000, None, 16, ["fp16"]])
def test_nothing_is_guessed_from_nothing(given):
    assert did_you_mean(given, DTYPES) == ""


def test_strategies_and_presets():
    for given, meant in (("tensor-data-hybrid", "tensor_data_hybrid"), ("dp", "pure_data_parallel")):
        with pytest.raises(SpecError, match=f"did you mean {meant!r}"):
            check_known(given)
    with pytest.raises(SpecError, match="allowed: smoke, cpu, xl; did you mean 'smoke'"):
        make_settings("smok", {})
    assert did_you_mean("gpt2", [*PRESETS, *STRATEGIES]) == ""
