"""What is read of a `config.json` of each family, and what is refused, by name."""

import json

import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.result_file import load_result
from gpt_parallel.inputs.checkpoint import read_architecture
from gpt_parallel.inputs.models import ARCHITECTURES, register_model
from gpt_parallel.schema.families.registry import architecture_of, family_of
from gpt_parallel.schema.model import ModelSpec
from tests.support.factories import run_result, run_spec
from tests.support.forms import FORMS, LLAMA3, random_config

LLAMA = {
    **{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 6},
    **{"intermediate_size": 40, "vocab_size": 50, "max_position_embeddings": 64},
}
NEOX = {**LLAMA, "model_type": "gpt_neox"}


@pytest.mark.parametrize("form", FORMS)
def test_a_configuration_and_its_architecture_say_the_same(form):
    """Written as a configuration and read again, and as what transformers' class of it has."""
    from transformers import AutoConfig

    architecture = architecture_of(random_config(form, 1))
    family = family_of(architecture)
    config = family.to_config(architecture)

    theirs = AutoConfig.for_model(family.name, **json.loads(json.dumps(config)))

    assert architecture_of({"model_type": family.name, **json.loads(json.dumps(config))}) == architecture
    assert architecture_of(theirs.to_dict()) == architecture


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "nano" in name])
def test_a_result_has_the_whole_architecture(tmp_path, name):
    model = ModelSpec(name=name, architecture=ARCHITECTURES[name], weights="random")
    result = run_result(run_spec(model=model))
    (tmp_path / "result.json").write_text(result.model_dump_json())

    assert load_result(tmp_path / "result.json") == result


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"num_kv_heads": 6, "head_size": 4, "activation": "silu", "tied_head": False, "switches": ()}),
        ({"num_key_value_heads": None}, {"num_kv_heads": 6}),
        ({"num_key_value_heads": 2, "head_dim": 10}, {"num_kv_heads": 2, "head_size": 10}),
        ({"attention_bias": True}, {"switches": ("output_bias", "qkv_bias")}),
        ({"model_type": "mistral"}, {"sliding_window": None, "num_kv_heads": 8, "num_heads": 8}),
        ({"model_type": "mistral", "sliding_window": 63}, {"sliding_window": 63, "sliding_layers": (0, 1)}),
        ({"model_type": "mistral", "sliding_window": 64}, {"sliding_window": None, "sliding_layers": ()}),
        ({"model_type": "qwen2", "sliding_window": 9}, {"sliding_window": None, "switches": ("qkv_bias",)}),
        ({"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True}, {"sliding_layers": ()}),
        (
            {"model_type": "qwen2", "sliding_window": 9, "use_sliding_window": True, "max_window_layers": 1},
            {"sliding_window": 9, "sliding_layers": (1,)},
        ),
        ({"model_type": "qwen3"}, {"head_size": 128, "switches": ("qk_norm",)}),
    ],
    ids=str,
)
def test_defaults_are_those_of_transformers(changes, expected):
    config = {**LLAMA, "num_key_value_heads": 6, **changes}
    if changes == {} or "mistral" in changes.values():
        del config["num_key_value_heads"]
    if "mistral" in changes.values():
        config |= {"num_attention_heads": 8, "hidden_size": 32}

    architecture = architecture_of(config)

    assert {name: getattr(architecture, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "sliding_window": 9}, "sliding_window = 9 is not supported; only None is"),
        ({**LLAMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0 is not supported; only None is"),
        ({**LLAMA, "residual_multiplier": 0.2}, "residual_multiplier = 0.2 is not supported; only 1.0 is"),
        ({**LLAMA, "num_local_experts": 8}, "num_local_experts = 8 is not supported"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported; only 1.0 is"),
        ({**LLAMA, "hidden_act": "xielu"}, "hidden_act = 'xielu': must be 'gelu', 'gelu_10'"),
        ({**LLAMA, "attention_bias": "yes"}, "attention_bias = 'yes' is neither true nor false"),
        ({**LLAMA, "num_attention_heads": 7}, "hidden_size 24 is not a multiple of num_attention_heads 7"),
        ({**LLAMA, "num_key_value_heads": 4}, "num_heads 6 is not a multiple of num_kv_heads 4"),
        ({**LLAMA, "hidden_size": None}, "hidden_size: is missing"),
        ({**LLAMA, "quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not supported"),
        ({**LLAMA, "rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling: rope_type 'longrope' is not"),
        ({**LLAMA, "rope_scaling": {"type": "su", "factor": 2.0}}, "only default, linear, dynamic, llama3, yarn are"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "factor is missing, which rope_type 'linear' needs"),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0: must be greater than 0"),
        ({**LLAMA, "rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor must be greater than low"),
        ({**LLAMA, "rope_parameters": {"mrope_section": [1]}}, "rope_parameters: 'mrope_section' is not supported"),
        ({**LLAMA, "rope_parameters": {"full_attention": {}}}, "rope_parameters: 'full_attention' is not supported"),
        ({**LLAMA, "rope_parameters": [1]}, "rope_parameters = [1] is not an object"),
        ({**LLAMA, "rope_theta": -1.0}, "theta = -1.0: must be greater than 0"),
        ({**LLAMA, "model_type": "mistral", "attention_bias": True}, "attention_bias = True is not supported"),
        ({**LLAMA, "model_type": "mistral", "layer_types": ["full_attention"] * 2}, "layer_types = ['full_attention'"),
        ({**LLAMA, "model_type": "mistral", "sliding_window": "9"}, "sliding_window = '9' is not a number of tokens"),
        ({**LLAMA, "model_type": "qwen3", "layer_types": ["full_attention"]}, "is not a list of full_attention and"),
        (
            {**LLAMA, "model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has sliding_attention, but use_sliding_window and sliding_window give no window",
        ),
        ({**LLAMA, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": None}, "max_window_layers"),
        ({**NEOX, "rotary_pct": 0.75}, "a rotary size of 3 is not even"),
        ({**NEOX, "rotary_pct": 2}, "rotary_pct = 2 is not a number above 0 and up to 1"),
        ({**NEOX, "num_attention_heads": 5}, "hidden_size 24 is not a multiple of 5 heads"),
        ({**NEOX, "use_parallel_residual": 1}, "use_parallel_residual = 1 is neither true nor false"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_computed_is_refused_by_name(tmp_path, config, message):
    config = {"num_key_value_heads": 6, **config}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(SpecError) as failure:
        read_architecture(tmp_path)

    assert message in str(failure.value)
    assert str(failure.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_a_model_is_registered_by_its_configuration(monkeypatch):
    monkeypatch.setattr("gpt_parallel.inputs.models.ARCHITECTURES", dict(ARCHITECTURES))
    from gpt_parallel.inputs.models import resolve_model

    register_model("mine", LLAMA)

    assert resolve_model("mine", "random").architecture == architecture_of(LLAMA)
    with pytest.raises(SpecError, match="model_type is 'opt'"):
        register_model("other", {**LLAMA, "model_type": "opt"})
    with pytest.raises(ValueError, match="model 'wrong': gated_mlp: family 'llama' computes True only"):
        register_model("wrong", architecture_of(LLAMA).model_copy(update={"gated_mlp": False}))


SIZES_ON_THE_HUB = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", SIZES_ON_THE_HUB)
def test_named_models_have_as_many_weights_as_on_the_hub(name):
    from gpt_parallel.layout.part import Part

    architecture = ARCHITECTURES[name]

    assert Part.whole(architecture).num_weights(architecture) == SIZES_ON_THE_HUB[name]
