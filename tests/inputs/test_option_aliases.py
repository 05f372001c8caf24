"""Names from other tools: what they stand for, and the honest answers."""

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs import option_aliases
from gpt_parallel.inputs.option_aliases import apply_aliases, with_bare_values


class Gpu:
    def __init__(self, *compute_capability):
        self.compute_capability = compute_capability


@pytest.fixture
def gpus(monkeypatch):
    def have(*found):
        monkeypatch.setattr(option_aliases, "cuda_devices", lambda: found)

    have()
    return have


@pytest.mark.parametrize(
    ("alias", "expected"),
    [
        ({"mixed_precision": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"mixed_precision": "fp16"}, {"dtype": "float16"}),
        ({"mixed_precision": "auto"}, {"dtype": "bfloat16"}),
        ({"memory_efficient_attention": None, "mixed_precision": None, "master_port": None}, {}),
        ({"offline_mode": True, "warmup_steps": "10"}, {"offline": True, "warmup": "10"}),
        ({"enable_profiling": True}, {"profile": "reports/profile"}),
    ],
)
def test_names_stand_for_settings(alias, expected, gpus):
    fields, notes = apply_aliases(alias, {"seed": "3"})

    assert fields == {"seed": "3", **expected}
    assert notes == []


def test_what_the_device_has_decides_what_a_name_stands_for(gpus):
    names = {"memory_efficient_attention": True, "mixed_precision": "auto"}
    on_cpu = (
        {"attention": "flash", "dtype": "bfloat16"},
        ["memory-efficient attention on CPU is the kernel of attention 'flash'"],
    )

    assert apply_aliases(names, {}) == on_cpu
    gpus(Gpu(9, 0), Gpu(8, 0))
    assert apply_aliases(names, {}) == ({"attention": "efficient", "dtype": "bfloat16"}, [])
    gpus(Gpu(9, 0), Gpu(7, 5))
    assert apply_aliases(names, {}) == ({"attention": "efficient", "dtype": "float16"}, [])
    assert apply_aliases(names, {"device": "cpu"}) == ({"device": "cpu", **on_cpu[0]}, on_cpu[1])


def test_a_directory_for_profiles_is_kept_beside_the_bare_name():
    assert apply_aliases({"enable_profiling": True}, {"profile": "traces"}) == ({"profile": "traces"}, [])


def test_a_value_may_be_left_out_where_another_option_or_nothing_follows():
    assert with_bare_values(["run", "--mixed_precision", "--seed", "1"]) == [
        *("run", "--mixed_precision=auto", "--seed", "1")
    ]
    assert with_bare_values(["run", "--mixed-precision"]) == ["run", "--mixed-precision=auto"]
    for given in (["--mixed-precision", "float16"], ["--mixed_precision=float16"], ["--seed", "1"], []):
        assert with_bare_values(given) == given


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
        ({"mixed_precision": "int8"}, {}, "mixed-precision = 'int8': allowed are bfloat16, float16, or no value"),
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
