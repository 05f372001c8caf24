"""Decode steps over tensors that stay in place. Without a GPU a captured step is simply called again."""

import gc
import random
import weakref

import pytest
import torch

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation import cuda_graphs as decode_graph
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.schema.run import MeshSpec, Request, SamplingSpec
from tests.engine.model.test_parity import generate_here

SAMPLINGS = [
    SamplingSpec(),
    SamplingSpec(temperature=0.9, seed=4),
    SamplingSpec(temperature=0.8, top_k=30, top_p=0.9, repetition_penalty=1.3, seed=5),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "filtered"])
@pytest.mark.parametrize("equal_lengths", [True, False])
def test_captured_steps_generate_the_same_tokens(tiny_checkpoint, monkeypatch, sampling, equal_lengths):
    monkeypatch.setattr(decode_graph, "BUCKET", 8)
    directory = tiny_checkpoint(n_layer=2, n_head=3, head_size=8, vocab_size=97, n_positions=48)
    choose = random.Random(1)
    requests = tuple(
        Request(
            request_id=index,
            prompt_ids=tuple(choose.randrange(97) for _ in range(12 if equal_lengths else choose.randint(2, 20))),
            max_new_tokens=17,
        )
        for index in range(5)
    )
    captured = []

    def call_again(call):
        captured.append(1)
        call()  # as CUDA's capture does, to warm up
        return call

    own = generate_here(directory, requests, 2, capture=call_again, sampling=sampling)

    assert own == generate_here(directory, requests, 2, sampling=sampling)
    assert 4 <= len(captured) <= 8, "one for each number of rows (2 and 1) and bucket, kept for later batches"


def test_a_graph_s_memory_lives_as_long_as_the_graph_and_steps_are_counted_once():
    """Capturing calls the step twice here; replaying a real graph would call no Python at all."""
    mesh = Mesh(MeshSpec(tp=2), 0)
    collectives = Collectives(mesh, Echo())
    read = []

    def compute(inputs, step, state, number):
        read.append(weakref.ref(step.rows))
        return collectives.all_reduce(inputs.clone())

    def capture(call):
        call()
        result = call()
        return lambda: result  # holds nothing of what the step reads

    graphs = decode_graph.DecodeGraphs(compute, capture, collectives, 32, torch.device("cpu"))
    graphs.start(torch.tensor([3, 5]), None)
    for step in range(1, 4):
        graphs.run(torch.tensor([7, 8]), step, 5)

    (count,) = collectives.counts()
    assert (count.op, count.calls, count.bytes) == ("all_reduce", 3, 3 * 16)
    gc.collect()
    assert all(rows() is not None for rows in read)


class Echo:
    """A transport between one rank and itself."""

    def all_reduce(self, tensor):
        return tensor
