"""One device against transformers: the reference that every layout is held to is itself held to `generate`."""

import random
from functools import cache

import pytest
import torch

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.records import tokens_by_request
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.linear import can_pack
from gpt_parallel.engine.model.weights import load
from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture
from gpt_parallel.layout.batches import deal_lanes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.run import MeshSpec, Request, SamplingSpec, WorkloadSpec

CPU = torch.device("cpu")


def generate_here(directory, requests, batch_size, linear="plain", capture=None, sampling=None):
    """Tokens by request id, from our engine in this process."""
    architecture = read_architecture(directory)
    checkpoint = inspect_checkpoint(directory, architecture)
    model = build(architecture, Part.whole(architecture))
    spec = ModelSpec(
        name="tiny",
        architecture=architecture,
        weights="checkpoint",
        directory=str(directory),
        files=checkpoint.files,
        key_prefix=checkpoint.key_prefix,
    )
    mesh = Mesh(MeshSpec(), 0)
    collectives = Collectives(mesh, None)
    workload = WorkloadSpec(requests=requests, batch_size=batch_size, sampling=sampling or SamplingSpec())
    with torch.inference_mode():
        load(model, spec)
        if linear == "packed":
            model.pack()
        sampler = Sampler(workload.sampling, architecture, range(architecture.vocab_size), collectives, 1, CPU)
        events = Generator(model, mesh, collectives, sampler, deal_lanes(workload, mesh), capture).run()
        return tokens_by_request([event for event in events if event.choice is not None])


def generate_with_transformers(directory, requests):
    """The same, each request alone, by `GPT2LMHeadModel.generate`."""
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()
    outputs = {}
    for request in requests:
        prompt = torch.tensor([request.prompt_ids])
        tokens = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=request.max_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        outputs[request.request_id] = tuple(tokens[0, prompt.shape[1] :].tolist())
    return outputs


@pytest.fixture(scope="module")
def workload(make_tiny_checkpoint, tmp_path_factory):
    """workload(seed) is a checkpoint, requests, a batch size, and transformers' tokens.

    Random shapes, prompts and numbers of new tokens unequal within a batch, a last batch that is not full.
    """
    return cache(lambda seed: make_workload(make_tiny_checkpoint, tmp_path_factory.mktemp("model"), seed))


def make_workload(make_tiny_checkpoint, directory, seed):
    choose = random.Random(seed)
    vocab_size = choose.randint(50, 300)
    make_tiny_checkpoint(
        directory,
        n_layer=choose.randint(1, 6),
        n_head=choose.randint(1, 7),
        head_size=choose.choice([8, 16, 24, 40, 64]),
        vocab_size=vocab_size,
        n_positions=48,
        seed=seed,
    )
    requests = tuple(
        Request(
            request_id=index,
            prompt_ids=tuple(choose.randrange(vocab_size) for _ in range(choose.randint(1, 30))),
            max_new_tokens=choose.randint(1, 18),
        )
        for index in range(7)
    )
    return directory, requests, choose.randint(1, 5), generate_with_transformers(directory, requests)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("linear", ["plain", "packed"])
def test_greedy_tokens_equal_transformers(workload, seed, linear):
    if linear == "packed" and not can_pack(torch.float32, CPU):
        pytest.skip("this build of torch has no packed products")
    directory, requests, batch_size, expected = workload(seed)

    ours = generate_here(directory, requests, batch_size, linear)

    assert ours == expected
    assert len({token for tokens in ours.values() for token in tokens}) > 5, "the model must not repeat itself"


def test_a_row_may_end_at_the_last_position_while_its_batch_goes_on(tiny_checkpoint):
    directory = tiny_checkpoint(n_layer=2, n_head=2, head_size=8, vocab_size=61, n_positions=32)
    requests = (
        Request(request_id=0, prompt_ids=tuple(range(30)), max_new_tokens=2),
        Request(request_id=1, prompt_ids=(5, 6), max_new_tokens=30),
    )

    assert generate_here(directory, requests, batch_size=2) == generate_with_transformers(directory, requests)
