"""Mistakes in a family's own parts, which all layouts make alike, are found by `pytest benchmarks` alone."""

import json

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.inputs.meshes import CUSTOM
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.report.tables import render_table
from tests.support import family_mutants, mutants, warm
from tests.support.forms import LLAMA3
from tests.support.paths import ROOT
from tests.support.processes import environment

SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 96,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "intermediate_size": 200,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": {**SIZES, "model_type": "llama", "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 16}},
    "mistral": {**SIZES, "model_type": "mistral", "sliding_window": 9},
    "qwen2": {**SIZES, "model_type": "qwen2"},
    "qwen3": {**SIZES, "model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gpt_neox": {
        **{key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
        **{"model_type": "gpt_neox", "rotary_pct": 0.25},
    },
    "gpt2": {
        **{"model_type": "gpt2", "n_layer": 3, "n_head": 3, "n_embd": 48, "vocab_size": 300, "n_positions": 64},
        "scale_attn_by_inverse_layer_idx": True,
    },
}
MISTAKES = [
    (family_mutants.rotate_one_position_late_in_decode, "llama", "float32"),
    (family_mutants.rotate_one_position_late_in_decode, "llama", "bfloat16"),
    (family_mutants.rotate_without_scaling, "llama", "float32"),
    (family_mutants.attend_to_the_next_heads_keys, "llama", "float32"),
    (family_mutants.attend_to_the_next_heads_keys, "qwen3", "bfloat16"),
    (family_mutants.normalise_without_weight, "llama", "float32"),
    (family_mutants.normalise_without_weight, "qwen3", "bfloat16"),
    (family_mutants.swap_gate_and_up, "llama", "float32"),
    (family_mutants.swap_gate_and_up, "mistral", "bfloat16"),
    (family_mutants.see_one_token_beyond_the_window, "mistral", "float32"),
    (family_mutants.see_one_token_beyond_the_window, "mistral", "bfloat16"),
    (family_mutants.tie_the_head, "llama", "float32"),
    (family_mutants.untie_the_head, "qwen3", "float32"),
    (family_mutants.rotate_before_the_norms_of_queries_and_keys, "qwen3", "float32"),
    (family_mutants.forget_the_bias_of_queries_and_keys, "qwen2", "float32"),
    (family_mutants.scale_all_layers_alike, "gpt2", "float32"),
    (family_mutants.let_the_mlp_read_what_attention_wrote, "gpt_neox", "float32"),
    (family_mutants.rotate_one_position_late_in_decode, "gpt_neox", "bfloat16"),
]
WORK = {"prompt_tokens": 20, "max_length": 8, "num_samples": 4, "batch_size": 2}


@pytest.fixture
def directory(tmp_path):
    def make(model):
        (tmp_path / "config.json").write_text(json.dumps(MODELS[model]))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(("mutant", "model", "dtype"), MISTAKES)
def test_a_mistake_of_a_family_is_found(directory, mutant, model, dtype):
    variables = {mutants.VARIABLE: mutant.__name__, "PYTHONPATH": str(ROOT)}
    given = {**WORK, "model": directory(model), "dtype": dtype, "weights": "random", "device": "cpu"}
    options = [f"--gpt-{name.replace('_', '-')}={value}" for name, value in given.items()]

    done = warm.run(
        [
            *(warm.PYTEST, "benchmarks", "-k", "1gpu", "--gpt-preset", "smoke", "--gpt-num-iterations=1"),
            *("--gpt-no-report", "-p", "tests.support.mutants", "-p", "no:cacheprovider", *options),
        ],
        cwd=ROOT,
        env=environment(**variables),
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "its single-device reference is not what transformers 5." in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_without_the_mistake_they_pass(directory, model, dtype):
    given = {**WORK, "model": directory(model), "dtype": dtype, "weights": "random", "device": "cpu"}
    suite = Suite(make_settings("smoke", given))

    for strategy, num_gpus in (("tensor_data_hybrid", 2), ("full_model_parallel", 4)):
        assert suite.run(suite.spec(strategy, num_gpus), timed=False).verification.passed


def test_more_shards_than_key_and_value_heads_are_told_and_counted(directory):
    given = {**WORK, "model": directory("qwen3"), "weights": "random", "device": "cpu", "tensor_parallel_size": 5}
    suite = Suite(make_settings("smoke", given))

    result = suite.run(suite.spec(CUSTOM, 5), timed=False)

    assert result.verification.status == "exact"
    held = [rank.holding for rank in result.ranks]
    assert [(each.num_heads, each.num_kv_heads, each.kv_copies) for each in held] == [*[(1, 1, 2)] * 4, (2, 1, 1)]
    # Of 16 numbers in 3 layers for 2 × 28 positions: keys and values of one head on each rank.
    assert {each.kv_cache_bytes for each in held} == {4 * 3 * 2 * 28 * 2 * 16}
    assert "tp5: more shards than key and value heads; up to 2 hold a copy of one" in render_table(
        [summarise([result])]
    )
