"""Bytes, operations and shares of a peak, against sums made by hand or by counting another way."""

from functools import partial
from statistics import fmean

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt_parallel.bench.efficiency import efficiency
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.interface import allocate_cache, num_bytes
from gpt_parallel.engine.model.kv_cache import Step
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.layout.cost import bytes_per_step, flop_per_round, messages_per_step, num_lanes
from gpt_parallel.layout.part import part_at
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.result import CollectiveCount, Figures, Holding
from gpt_parallel.schema.run import MeshSpec, Request, WorkloadSpec
from gpt_parallel.schema.telemetry import PeakRates
from tests.support.factories import rank_report, run_spec

TINY = Architecture(n_layer=3, n_head=2, n_embd=16, n_inner=48, vocab_size=50, n_positions=32)


def workload(*lengths, batch_size=1):
    requests = tuple(
        Request(request_id=i, prompt_ids=tuple(range(prompt)), max_new_tokens=new)
        for i, (prompt, new) in enumerate(lengths)
    )
    return WorkloadSpec(requests=requests, batch_size=batch_size)


def spec_of(architecture, *lengths, batch_size=1, **changes):
    model = ModelSpec(name="tiny", architecture=architecture, weights="random")
    return run_spec(model=model, workload=workload(*lengths, batch_size=batch_size), **changes)


def peaks(num_bytes=None, flop=None):
    missing = {k: "too full" for k, v in {"bytes_per_s": num_bytes, "flop_per_s": flop}.items() if v is None}
    return PeakRates(method="reading", bytes_per_s=num_bytes, flop_per_s=flop, unavailable=missing)


SIZES = {"num_layers": 3, "num_heads": 4, "hidden_size": 24, "mlp_size": 40, "vocab_size": 50, "max_positions": 32}
ROTARY = {**SIZES, "num_kv_heads": 2, "gated_mlp": True, "rope": {"rotary_size": 6}}
SHAPES = {
    "gpt2": TINY,
    "gpt2-untied": Architecture(**SIZES, tied_head=False),
    "llama": Architecture(**ROTARY, family="llama", tied_head=False),
    "mistral": Architecture(**ROTARY, family="mistral", sliding_window=5, sliding_layers=(0, 1, 2)),
    "qwen2": Architecture(**ROTARY, family="qwen2", sliding_window=9, sliding_layers=(2,), switches=("qkv_bias",)),
    "qwen3": Architecture(**{**ROTARY, "hidden_size": 20, "head_size": 6}, family="qwen3", switches=("qk_norm",)),
    "gpt_neox": Architecture(**SIZES, family="gpt_neox", rope={"rotary_size": 2}, switches=("parallel_residual",)),
}
PROMPT, NEW = 7, 4


def steps_of(architecture, tp_size=1, shard=0):
    """Calls for one request: its prompt in one pass, then token by token. With the model and its cache."""
    part = part_at(architecture, shard, tp_size, range(architecture.num_layers))
    model = build(architecture, part, reduce=lambda x: x)
    for parameter, _ in model.parameters():
        parameter.fill_(0.01)
    cache = allocate_cache(model, 1, PROMPT + NEW)

    def take(index):
        step = Step(False, 1, PROMPT) if index == 0 else Step(True, 1, PROMPT + index, PROMPT + index - 1)
        tokens = torch.zeros(1, PROMPT, dtype=torch.long) if index == 0 else torch.zeros(1, dtype=torch.long)
        model.head(model.blocks(model.embed(tokens, step), cache, step)[-1:])

    return [partial(take, index) for index in range(NEW)], model, cache


@pytest.mark.parametrize("name", SHAPES)
def test_operations_are_those_that_torch_counts(name):
    """As torch's own counter sees the products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    shape = SHAPES[name]
    steps, _, _ = steps_of(shape)
    # Of attention's kernels it knows the one that is made of plain products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for take in steps:
            take()
    # That one computes what the mask of a prompt hides, too.
    windows = [shape.window_of(layer) or PROMPT for layer in range(shape.num_layers)]
    hidden = sum(PROMPT - min(position + 1, window) for window in windows for position in range(PROMPT))
    skipped = 4 * shape.num_heads * shape.head_size * hidden

    assert flop_per_round(spec_of(shape, (PROMPT, NEW))) == counter.get_total_flops() - skipped


_aten = torch.ops.aten


class Reading(TorchDispatchMode):
    """Counts the bytes of weights and of the cache that operations take, but for tables that are looked up."""

    def __init__(self, model, cache):
        super().__init__()
        self.num_bytes, self._seen = 0, set()
        owners = [*(parameter.target for parameter in model.parameters()), cache._data]
        self._own = {tensor.untyped_storage().data_ptr() for tensor in owners}
        if hasattr(model, "positions"):
            self._own.remove(model.positions.weight.untyped_storage().data_ptr())

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        reads = not (operation.is_view or operation in (_aten.copy_.default, _aten.index_select.default))
        for tensor in filter(torch.is_tensor, tree_leaves(args) if reads else ()):
            key = (tensor.data_ptr(), tensor.numel())
            if tensor.untyped_storage().data_ptr() in self._own and key not in self._seen:
                self._seen.add(key)
                self.num_bytes += tensor.nbytes
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("tp_size", [1, 2, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_bytes_of_a_decode_step_are_those_that_are_read(name, tp_size):
    """For each shard, the mean over the steps of one request."""
    shape = SHAPES[name]
    if tp_size > shape.num_heads:
        pytest.skip("fewer heads than shards")
    spec = spec_of(shape, (PROMPT, NEW), mesh=MeshSpec(tp=tp_size))
    for shard in range(tp_size):
        steps, model, cache = steps_of(shape, tp_size, shard)
        counted = []
        with torch.inference_mode():
            steps[0]()
            for take in steps[1:]:
                with Reading(model, cache) as reading:
                    take()
                counted.append(reading.num_bytes)
        size, part = num_bytes(model.parameters()), model.part
        held = Holding(layers=(0, 3), num_heads=len(part.heads), num_kv_heads=len(part.kv_heads), parameter_bytes=size)
        rank = rank_report(shard, shard=shard).model_copy(update={"holding": held})

        rows = len(part.vocabulary)  # of a tied head the formula takes the mean of all shards
        uneven = 4 * shape.hidden_size * rows - 4 * shape.hidden_size * shape.vocab_size // tp_size
        tied = uneven if shape.tied_head else 0
        assert bytes_per_step(spec, rank) + tied == pytest.approx(fmean(counted))
        assert size == 4 * part.num_weights(shape)


def test_a_whole_gpt2_reads_its_weights_but_for_the_positions():
    gpt2 = ARCHITECTURES["gpt2"]
    spec = spec_of(gpt2, (64, 16), (64, 16))
    rank = rank_report(layers=(0, 12), num_heads=12, parameter_bytes=4 * 124_439_808)

    weights = 4 * (124_439_808 - 1024 * 768)
    assert bytes_per_step(spec, rank) == weights + 2 * 4 * 12 * 768 * (64 + 8)


def test_stages_read_their_own_and_the_first_no_head():
    spec = spec_of(TINY, *[(4, 2)] * 4, batch_size=2, mesh=MeshSpec(pp=2))
    tables = 4 * 16 * (50 + 32)
    window = 4 + 1

    first = rank_report(layers=(0, 2), num_heads=2, parameter_bytes=tables + 1000)
    last = rank_report(1, stage=1, layers=(2, 3), num_heads=2, parameter_bytes=5000)

    assert bytes_per_step(spec, first) == 1000 + 2 * (2 * 4 * window * 16 * 2)
    assert bytes_per_step(spec, last) == 5000 + 2 * (2 * 4 * window * 16 * 1)


@pytest.mark.parametrize(("num_requests", "mesh", "lanes"), [(8, {"pp": 3}, 3), (1, {"pp": 2}, 1), (4, {"dp": 2}, 1)])
def test_lanes_are_stages_while_there_are_rows(num_requests, mesh, lanes):
    assert num_lanes(spec_of(TINY, *[(4, 2)] * num_requests, mesh=MeshSpec(**mesh))) == lanes


def test_the_rank_nearest_to_its_limit_is_the_mbu_and_all_peaks_are_the_mfu():
    spec = spec_of(TINY, *[(4, 2)] * 4, mesh=MeshSpec(pp=2))
    ranks = [
        rank_report(r, stage=r, layers=(r, r + 1), num_heads=2, parameter_bytes=9000, peak_rates=peaks(rate, flop))
        for r, rate, flop in ((0, 1e6, 3e6), (1, 0.5e6, 1e6))
    ]
    figures = Figures(tpot_s=0.1, round_seconds=(2.0, 4.0, 3.0))

    found = efficiency(spec, ranks, figures)

    assert found.mbu == pytest.approx(2 * bytes_per_step(spec, ranks[1]) / (0.1 * 0.5e6))
    assert found.mfu == pytest.approx(flop_per_round(spec) / (3.0 * 4e6))
    assert found.peak == "reading"


def test_what_cannot_be_known_has_its_reason():
    spec = spec_of(TINY, (4, 2))
    figures = Figures(tpot_s=0.1, round_seconds=(1.0,))

    unmeasured = efficiency(spec, [rank_report()], figures)
    full = efficiency(spec, [rank_report(peak_rates=peaks(None, 1e6))], figures)
    single = efficiency(spec, [rank_report(peak_rates=peaks(1e6, 1e6))], Figures(round_seconds=(1.0,)))

    assert unmeasured.mbu is unmeasured.mfu is None
    assert "telemetry was switched off" in unmeasured.unavailable["mfu"]
    assert full.unavailable == {"mbu": "rank 0: too full"}
    assert full.mfu > 0
    assert "no time per output token" in single.unavailable["mbu"]


def test_messages_are_of_the_busiest_rank_and_of_one_step():
    counts = [(CollectiveCount(op="all_reduce", calls=calls, bytes=1),) for calls in (12, 48)]
    ranks = [rank_report(i, collectives=count) for i, count in enumerate(counts)]

    found = messages_per_step(spec_of(TINY, *[(4, 2)] * 4, batch_size=2), ranks)

    assert found == {"all_reduce": 48 / (2 * 2)}
