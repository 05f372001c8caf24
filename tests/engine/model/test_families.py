"""Every form of every family, under every kind of layout, has the tokens of transformers' `generate`."""

import itertools
import os

import pytest
import torch

from gpt_parallel.engine.generation import cuda_graphs
from gpt_parallel.engine.model.linear import can_pack
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.schema.run import SamplingSpec, WorkloadSpec
from tests.support.forms import FORMS, random_config, random_requests, save_model, tokens_of_transformers
from tests.support.threads import generate

MESHES = [{}, {"dp": 2}, {"tp": 2}, {"tp": 3}, {"pp": 2}, {"pp": 3}, {"tp": 2, "pp": 2}]
SAMPLED = SamplingSpec(temperature=0.9, top_k=20, top_p=0.95, repetition_penalty=1.1, seed=3)
NUM_SHAPES = int(os.environ.get("GPT_PARALLEL_TEST_SHAPES", "1"))


@pytest.mark.parametrize("number", range(NUM_SHAPES))
@pytest.mark.parametrize("form", FORMS)
def test_tokens_are_those_of_transformers(tmp_path, form, number):
    config = random_config(form, number)
    theirs = save_model(config, tmp_path, number)
    model = resolve_model(str(tmp_path), "checkpoint")
    meshes = [*MESHES, *beyond(model.architecture)]
    for sampling in (SamplingSpec(), SAMPLED):
        requests = random_requests(config["vocab_size"], number, equal=number % 3 == 0)
        workload = WorkloadSpec(requests=requests, batch_size=1 + number % 3, sampling=sampling)
        with torch.inference_mode():
            expected = tokens_of_transformers(theirs, workload)

        for mesh in meshes:
            assert generate(model, workload, **mesh) == expected, (config, mesh, sampling)
    assert len({token for tokens in expected.values() for token in tokens}) > 5, "the model must not repeat itself"


@pytest.mark.parametrize("form", ["gpt2-untied", "llama", "neox"])
def test_stored_types_may_be_mixed(tmp_path, form):
    """Each weight is what its type can hold, whatever the next one's is."""
    from safetensors.torch import load_file, save_file

    types = itertools.cycle((torch.bfloat16, torch.float16, torch.float32, torch.float64))
    theirs = save_model(random_config(form, 3), tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    mixed = {name: tensor.to(next(types)) for name, tensor in stored.items()}
    save_file(mixed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, parameter in theirs.state_dict().items():
        key = "embed_out.weight" if name == "lm_head.weight" and name not in mixed else name
        parameter.copy_(mixed[key])
    requests = random_requests(theirs.config.vocab_size, 3)
    workload = WorkloadSpec(requests=requests, batch_size=2)

    with torch.inference_mode():
        expected = tokens_of_transformers(theirs, workload)

    model = resolve_model(str(tmp_path), "checkpoint")
    assert generate(model, workload, tp=2, pp=2) == expected


@pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this build of torch has no packed products"
)
@pytest.mark.parametrize("form", ["gpt2-untied", "llama-biases", "qwen3-window", "neox"])
def test_packed_products_have_the_same_tokens(tmp_path, form):
    config = random_config(form, 4)
    theirs = save_model(config, tmp_path)
    workload = WorkloadSpec(requests=random_requests(config["vocab_size"], 4), batch_size=3)
    with torch.inference_mode():
        expected = tokens_of_transformers(theirs, workload)
    model = resolve_model(str(tmp_path), "checkpoint")

    for mesh in ({}, {"tp": 3}, {"pp": 2}):
        assert generate(model, workload, linear="packed", **mesh) == expected


@pytest.mark.parametrize("form", ["gpt2-upcast", "llama", "mistral-window", "qwen3", "neox-sequential"])
@pytest.mark.parametrize("equal", [True, False])
def test_captured_steps_have_the_same_tokens(tmp_path, monkeypatch, form, equal):
    """Without a GPU a captured step is simply called again; buckets are so small that a window ends within them."""
    monkeypatch.setattr(cuda_graphs, "BUCKET", 8)
    config = random_config(form, 5)
    theirs = save_model(config, tmp_path)
    workload = WorkloadSpec(requests=random_requests(config["vocab_size"], 5, equal=equal), batch_size=2)
    with torch.inference_mode():
        expected = tokens_of_transformers(theirs, workload)

    def call_again(call):
        call()  # as CUDA's capture does, to warm up
        return call

    model = resolve_model(str(tmp_path), "checkpoint")
    for mesh in ({}, {"tp": 2}, {"pp": 2}):
        assert generate(model, workload, capture=call_again, **mesh) == expected


def beyond(architecture):
    """A mesh of more shards than key and value heads, if the model has fewer of those than query heads."""
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    return [{"tp": (kv_heads + 1 + heads) // 2}, {"tp": heads}] if kv_heads < heads else []
