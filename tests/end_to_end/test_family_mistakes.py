"""Mistakes in a family's own parts, which all layouts make alike, are found by `pytest benchmarks` alone."""

import json

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
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
