"""Frequencies and angles are those of transformers' own modules, to the bit."""

import pytest
import torch

from gpt_parallel.engine.model.kv_cache import Step
from gpt_parallel.engine.model.rotary import Rotary, inverse_frequencies
from gpt_parallel.schema.families.registry import architecture_of

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
KINDS = {
    "default": {},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    "llama3-32": {"rope_type": "llama3", "factor": 32.0, **LLAMA3},
    "yarn": YARN,
    "yarn-betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-exact": {**YARN, "truncate": False},
    "yarn-attention": {**YARN, "attention_factor": 1.7},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1},
    "yarn-no-ramp": {**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
}
SIZES = {
    **{"num_hidden_layers": 1, "hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 8192},
}


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_and_angles_are_those_of_transformers(kind, theta, head_dim):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_type": "default", "rope_theta": theta, **KINDS[kind]}
    config = {**SIZES, "head_dim": head_dim, "rope_parameters": parameters}
    rope = architecture_of({"model_type": "llama", **config}).rope
    theirs = LlamaRotaryEmbedding(LlamaConfig(**{**config, "rope_parameters": dict(parameters)}))
    positions = torch.tensor([0, 1, 17, 4095, 8190])

    frequencies, scale = inverse_frequencies(rope)
    cosines, sines = theirs(torch.zeros(1), positions[None])
    unequal = Rotary(rope, torch.device("cpu"))(Step(True, 5, 8191, positions=positions))
    equal = Rotary(rope, torch.device("cpu"))(Step(True, 5, 4096, position=4095))
    prompt = Rotary(rope, torch.device("cpu"))(Step(False, 1, 4096))

    assert torch.equal(frequencies, theirs.inv_freq)
    assert scale == theirs.attention_scaling
    half = head_dim // 2
    assert torch.equal(unequal.cosines[:, 0, 0], cosines[0, :, :half])
    assert torch.equal(unequal.sines[:, 0], torch.stack((-sines[0, :, :half], sines[0, :, half:]), 1))
    assert torch.equal(equal.cosines[0, 0], cosines[0, 3, :half])
    assert torch.equal(prompt.cosines[4095], unequal.cosines[3])


@pytest.mark.parametrize("rotary_size", [4, 10, 16])
def test_only_the_first_dimensions_turn(rotary_size):
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    from gpt_parallel.schema.rope import Rope

    generator = torch.Generator().manual_seed(rotary_size)
    q, k = (torch.randn(2, 5, heads, 16, generator=generator) for heads in (3, 2))
    rotation = Rotary(Rope(rotary_size=rotary_size), torch.device("cpu"))(Step(False, 2, 5))
    cosines = rotation.cosines[:, 0, 0].repeat(1, 2)
    sines = rotation.sines[:, 0, 1].repeat(1, 2)

    expected = apply_rotary_pos_emb(q, k, cosines, sines, unsqueeze_dim=1)

    torch.testing.assert_close(rotation(q), expected[0])
    torch.testing.assert_close(rotation(k), expected[1])
    assert rotation(q.bfloat16()).dtype == torch.bfloat16
