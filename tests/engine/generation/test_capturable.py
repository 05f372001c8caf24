"""What CUDA cannot capture in a graph, found without a GPU: a decode step over tensors of another device, `meta`.

Those know shapes and compute nothing. Every operation passes by, as it would be sent to a GPU: one that takes a value
from the host (on CUDA torch copies it, which capturing forbids) or hands one to it is refused.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.cuda_graphs import DecodeGraphs
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.families import build
from gpt_parallel.layout.batches import deal_lanes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.run import MeshSpec, Request, SamplingSpec, WorkloadSpec

SHAPE = Architecture(n_layer=2, n_head=2, n_embd=32, n_inner=64, vocab_size=97, n_positions=32)
ROTARY = {
    **{"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "hidden_size": 32, "mlp_size": 64, "vocab_size": 97},
    **{"max_positions": 32, "gated_mlp": True, "rope": {"rotary_size": 8}},
}
OTHERS = {
    "llama": Architecture(**ROTARY, family="llama", switches=("mlp_bias",)),
    "qwen3": Architecture(
        **ROTARY, family="qwen3", switches=("qk_norm",), sliding_window=3, sliding_layers=(1,), tied_head=False
    ),
    "gpt_neox": Architecture(
        **{**ROTARY, "num_kv_heads": 4, "gated_mlp": False, "rope": {"rotary_size": 2}},
        family="gpt_neox",
        switches=("parallel_residual",),
    ),
}
DEVICE = torch.device("meta")
SAMPLINGS = {
    "greedy": SamplingSpec(),
    "temperature": SamplingSpec(temperature=0.8),
    "top_k": SamplingSpec(temperature=0.8, top_k=5),
    "top_p": SamplingSpec(temperature=0.8, top_p=0.9),
    "penalty": SamplingSpec(repetition_penalty=1.2),
    "all": SamplingSpec(temperature=0.8, top_k=9, top_p=0.9, repetition_penalty=1.2, seed=3),
}
_aten = torch.ops.aten
# Where Python has a number for one of their values, torch makes a tensor of it on the host and copies that.
_NEED_TENSORS = {
    *(_aten.where.self, _aten.where.Scalar, _aten.where.ScalarOther, _aten.where.ScalarSelf),
    *(_aten.index_put.default, _aten.index_put_.default, _aten.masked_scatter.default),
}
_SYNCHRONISE = {
    _aten.item.default,
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
}


class NotCapturableError(RuntimeError):
    pass


class Capturing(TorchDispatchMode):
    """Refuses what a CUDA graph cannot hold."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        values = tree_leaves((args, kwargs or {}))
        devices = {value.device.type for value in values if isinstance(value, torch.Tensor)}
        if operation in _NEED_TENSORS and any(map(_is_number, values)):
            raise NotCapturableError(f"{operation} copies a value of the host to the device")
        if operation in _SYNCHRONISE:
            raise NotCapturableError(f"{operation} waits for the device")
        result = operation(*args, **(kwargs or {}))
        made = {value.device.type for value in tree_leaves(result) if isinstance(value, torch.Tensor)}
        if len(devices | made) > 1 or "cpu" in made:
            raise NotCapturableError(f"{operation} copies between the host and the device")
        return result


def _is_number(value):
    """Or the tensor that torch has made of one."""
    if isinstance(value, torch.Tensor):
        return value.ndim == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


def capture_steps(sampling, lengths, mark=None, shape=SHAPE):
    """Two decode steps of a batch by captured graphs, the first of which is captured; with another `mark` if given."""
    requests = tuple(Request(request_id=i, prompt_ids=(1,) * n, max_new_tokens=3) for i, n in enumerate(lengths))
    workload = WorkloadSpec(requests=requests, batch_size=len(requests), sampling=sampling)
    mesh = Mesh(MeshSpec(), 0)
    collectives = Collectives(mesh, None)
    captured = []

    def capture(call):
        sampler._mark = mark or sampler._mark
        with Capturing():
            call()
            captured.append(call())
        return lambda: captured[-1]

    with torch.inference_mode():
        model = build(shape, Part.whole(shape), torch.bfloat16, DEVICE)
        sampler = Sampler(sampling, shape, range(shape.vocab_size), collectives, 1, DEVICE)
        generator = Generator(model, mesh, collectives, sampler, deal_lanes(workload, mesh), capture)
        assert isinstance(generator._lanes[0].graphs, DecodeGraphs)
        events = list(generator.run(record=True))
    assert len(events) == 1 + 3
    return captured


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("lengths", [(4, 4), (2, 6), (5,)], ids=["equal", "unequal", "one"])
def test_a_decode_step_can_be_captured_with_every_sampling_option(sampling, lengths):
    assert len(capture_steps(sampling, lengths)) == 1


@pytest.mark.parametrize("shape", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("lengths", [(4, 4), (2, 6)], ids=["equal", "unequal"])
def test_a_decode_step_of_every_family_can_be_captured(shape, lengths):
    assert len(capture_steps(SamplingSpec(), lengths, shape=shape)) == 1


def _assign(seen, tokens):
    seen[torch.arange(len(seen), device=DEVICE), tokens[:, 0]] = True


def _choose_by_number(seen, tokens):
    torch.where(tokens > 3, tokens, 7)


def _read(seen, tokens):
    tokens.sum().item()


def _bring_from_host(seen, tokens):
    tokens + torch.tensor([1]).to(DEVICE)


@pytest.mark.parametrize("wrong", [_assign, _choose_by_number, _read, _bring_from_host])
def test_what_cannot_be_captured_is_found(wrong):
    """The first two are what a penalty's step once did."""
    with pytest.raises(NotCapturableError):
        capture_steps(SAMPLINGS["penalty"], (4, 4), wrong)
