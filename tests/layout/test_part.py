"""What each rank holds and what that costs, against tables saved before models of other families could be run."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import torch

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.records import tokens_by_request
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.interface import num_bytes
from gpt_parallel.engine.model.random_weights import random_tensor
from gpt_parallel.engine.model.weights import load
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.launch.gpu_memory import needs
from gpt_parallel.layout.batches import deal_lanes
from gpt_parallel.layout.cost import bytes_per_step, flop_per_round, rank_bytes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part, part_at, part_of
from gpt_parallel.layout.stages import head_cost, head_passes
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.run import ExecutionSpec, MeshSpec, Request, RunSpec, WorkloadSpec
from tests.support.factories import rank_report

SAVED = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "partitions.json.gz").read_bytes()))


def requests_of(saved, vocab_size=None):
    """As saved; with a vocabulary the prompts are ids of it."""
    return tuple(
        Request(
            request_id=number,
            prompt_ids=tuple((7 * number + index) % vocab_size if vocab_size else 0 for index in range(length)),
            max_new_tokens=new,
        )
        for number, (length, new) in enumerate(saved["requests"])
    )


def spec_of(saved):
    pp, dp, tp = saved["mesh"]
    return RunSpec(
        strategy="x",
        mesh=MeshSpec(pp=pp, dp=dp, tp=tp),
        model=ModelSpec(name="m", architecture=saved["architecture"], weights="random"),
        workload=WorkloadSpec(requests=requests_of(saved), batch_size=saved["batch_size"]),
        execution=ExecutionSpec(device=saved["device"], dtype=saved["dtype"], backend="gloo"),
    )


@pytest.mark.parametrize("number", range(len(SAVED)))
def test_parts_and_costs_are_as_they_were(number):
    saved = SAVED[number]
    spec = spec_of(saved["spec"])
    architecture = spec.model.architecture

    found = []
    for rank in range(spec.mesh.size):
        mesh = Mesh(spec.mesh, rank)
        part = part_of(spec, mesh)
        ranges = (part.layers, part.heads, part.mlp_columns, part.vocabulary)
        size = num_bytes(build(architecture, part, torch.float32, "meta").parameters())
        held = {"layers": (part.layers.start, part.layers.stop), "num_heads": len(part.heads), "parameter_bytes": size}
        report = rank_report(rank, stage=mesh.stage, replica=mesh.replica, shard=mesh.shard, **held)
        bounds = [bound for each in ranges for bound in (each.start, each.stop)]
        found.append([*bounds, part.has_embedding, part.has_head, size, bytes_per_step(spec, report)])
        assert part.kv_heads == part.heads
        assert 4 * part.num_weights(architecture) == size

    assert found == saved["ranks"]
    assert head_cost(architecture) == saved["decode_head"]
    assert head_cost(architecture) * head_passes(spec.workload, spec.execution) == saved["head"]
    assert flop_per_round(spec) == saved["flop"]
    assert rank_bytes(spec) == saved["rank_bytes"]
    assert [list(need) for need in needs(spec)] == saved["needs"]


@pytest.mark.parametrize("number", [index for index, saved in enumerate(SAVED) if "weights" in saved])
def test_seeded_weights_and_their_float32_tokens_on_a_cpu_are_as_they_were(number):
    saved = SAVED[number]
    architecture = Architecture.model_validate(saved["spec"]["architecture"])
    for name, digest in saved["weights"].items():
        tensor = random_tensor(name, architecture, number)
        assert hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16] == digest, name
    requests = requests_of(saved["spec"], architecture.vocab_size)
    workload = WorkloadSpec(requests=requests, batch_size=saved["spec"]["batch_size"])
    mesh = Mesh(MeshSpec(), 0)
    collectives, model = Collectives(mesh, None), build(architecture, Part.whole(architecture))

    with torch.inference_mode():
        load(model, ModelSpec(name="m", architecture=architecture, weights="random", seed=number))
        vocabulary, device = range(architecture.vocab_size), torch.device("cpu")
        sampler = Sampler(workload.sampling, architecture, vocabulary, collectives, 1, device)
        events = Generator(model, mesh, collectives, sampler, deal_lanes(workload, mesh)).run()
        tokens = tokens_by_request([event for event in events if event.choice is not None])

    assert [list(chosen) for _, chosen in sorted(tokens.items())] == saved["tokens"]


def test_grouped_heads_are_dealt_with_their_key_and_value_head():
    """Qwen3-0.6B, whose MLP has three matrices: 8 key and value heads over 3 ranks, equal in bytes."""
    qwen = ARCHITECTURES["qwen3-0.6b"]

    parts = [part_at(qwen, shard, 3, range(28)) for shard in range(3)]

    assert [len(part.kv_heads) for part in parts] == [3, 3, 2]
    assert [len(part.heads) for part in parts] == [6, 6, 4]
    assert [len(part.mlp_columns) for part in parts] == [939, 939, 1194]
    weights = [matrix_weights(qwen, part) for part in parts]
    assert max(weights) / min(weights) < 1.0006


def matrix_weights(architecture, part):
    """Of a block: Q and the projection, K and V, and three matrices of the MLP."""
    heads = 2 * len(part.heads) + 2 * len(part.kv_heads)
    return architecture.hidden_size * (heads * architecture.head_size + 3 * len(part.mlp_columns))
