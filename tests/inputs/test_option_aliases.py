"""Names from other tools: what they stand for, and the honest answers."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.option_aliases import apply_aliases


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ({"mixed_precision": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"mixed_precision": "float16"}, {"dtype": "float16"}),
        ({"memory_efficient_attention": True}, {"attention": "efficient"}),
        ({"memory_efficient_attention": None, "mixed_precision": None, "master_port": None}, {}),
    ],
)
def test_names_stand_for_settings(alias, expected):
    fields, notes = apply_aliases(alias, {"seed": "3"})

    assert fields == {"seed": "3", **expected}
    assert notes == []


def test_gradient_checkpointing_is_answered_in_a_sentence():
    fields, (note,) = apply_aliases({"gradient_checkpointing": True}, {})

    assert fields == {}
    assert "generation keeps no gradients" in note
    for what_does in ("bfloat16", "tensor or pipeline parallelism", "batch_size", "max_length"):
        assert what_does in note
    assert "\n" not in note


def test_a_master_port_is_answered_in_a_sentence():
    _, (note,) = apply_aliases({"master_port": "29500"}, {})

    assert note == "master port 29500 is not used: ranks meet through a private file, so no port has to be free"


@pytest.mark.parametrize(
    ("alias", "given", "message"),
    [
        ({"mixed_precision": "int8"}, {}, "mixed-precision = 'int8': allowed are bfloat16, float16"),
        (
            {"mixed_precision": "float16"},
            {"dtype": "float32"},
            "conflicting values for dtype: 'float32', and 'float16'",
        ),
        ({"memory_efficient_attention": True}, {"attention": "math"}, "conflicting values for attention"),
        ({"master_port": "0"}, {}, "must be a port from 1 to 65535"),
        ({"master_port": "x"}, {}, "must be a port from 1 to 65535"),
        ({"master_port": "70000"}, {}, "must be a port from 1 to 65535"),
    ],
)
def test_wrong_values_and_contradictions(alias, given, message):
    with pytest.raises(SpecError, match=message):
        apply_aliases(alias, given)


def test_saying_the_same_twice_is_no_contradiction():
    fields, _ = apply_aliases({"mixed_precision": "float16"}, {"dtype": "float16"})

    assert fields["dtype"] == "float16"
