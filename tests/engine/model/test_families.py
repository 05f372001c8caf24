"""Every form of every family, under every kind of layout, has the tokens of transformers' `generate`."""

import os

import pytest
import torch

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


def beyond(architecture):
    """A mesh of more shards than key and value heads, if the model has fewer of those than query heads."""
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    return [{"tp": (kv_heads + 1 + heads) // 2}, {"tp": heads}] if kv_heads < heads else []
