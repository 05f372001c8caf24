"""Bytes, operations and shares of a peak, against sums made by hand or by counting another way."""

import pytest
import torch

from gpt_parallel.bench.efficiency import efficiency
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.kv_cache import KVCache, Step
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.layout.cost import bytes_per_step, flop_per_round, messages_per_step, num_lanes
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.result import CollectiveCount, Figures
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


def test_operations_are_those_that_torch_counts():
    """One request: its prompt in one pass, then token by token, as torch's own counter sees the products."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    prompt, new = 7, 4
    model = build(TINY, Part.whole(TINY))
    for parameter, _ in model.parameters():
        parameter.fill_(0.01)
    cache = KVCache(3, 1, 2, prompt + new, 8, torch.float32, torch.device("cpu"))
    # Of attention's kernels it knows the one that is made of plain products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for index in range(new):
            step = Step(False, 1, prompt) if index == 0 else Step(True, 1, prompt + index, prompt + index - 1)
            tokens = torch.zeros(1, prompt, dtype=torch.long) if index == 0 else torch.zeros(1, dtype=torch.long)
            model.head(model.blocks(model.embed(tokens, step), cache, step)[-1:])
    # That one computes the upper triangle of a causal prompt, too.
    skipped = 4 * 16 * 3 * (prompt * prompt - prompt * (prompt + 1) / 2)

    assert flop_per_round(spec_of(TINY, (prompt, new))) == counter.get_total_flops() - skipped


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
