"""Every layout, as real processes, against transformers and against what the layout implies."""

import random
from pathlib import Path

import pytest
import torch

from gpt_parallel.bench.suite import Suite
from gpt_parallel.engine.model.linear import can_pack
from gpt_parallel.inputs.meshes import CUSTOM
from gpt_parallel.inputs.prompt_files.read import read_prompts
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.layout.strategies import cases
from tests.engine.model.test_parity import generate_with_transformers

NUM_LAYERS, WIDTH, BATCH_SIZE = 5, 5 * 16, 2
SAMPLED = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 7}
CUSTOM_MESHES = [(1, 3, 1), (3, 1, 1), (2, 2, 2)]


@pytest.fixture(scope="module")
def workload(tmp_path_factory, make_tiny_checkpoint):
    """A model with heads and vocabulary that divide by nothing, and prompts of unequal length."""
    directory = make_tiny_checkpoint(
        tmp_path_factory.mktemp("layouts"), n_layer=NUM_LAYERS, n_head=5, head_size=16, vocab_size=211, n_positions=48
    )
    choose = random.Random(3)
    lines = [
        f'{{"prompt_ids": {[choose.randrange(211) for _ in range(choose.randint(3, 20))]}, "max_length": {length}}}'
        for length in (6, 7, 6, 5, 6, 6, 3, 6)
    ]
    prompts = directory / "prompts.jsonl"
    prompts.write_text("\n".join(lines))
    return {
        "model": str(directory),
        "prompts": str(prompts),
        "batch_size": BATCH_SIZE,
        "num_iterations": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def greedy(workload):
    return Suite(make_settings("smoke", workload))


@pytest.fixture(scope="module")
def sampled(workload):
    return Suite(make_settings("smoke", {**workload, **SAMPLED}))


@pytest.fixture(scope="module")
def expected(greedy, workload):
    """transformers' tokens for the greedy workload."""
    assert len(read_prompts(Path(workload["prompts"]))) == len(greedy.workload.requests)
    return generate_with_transformers(workload["model"], greedy.workload.requests)


LAYOUTS = [
    *(pytest.param(strategy, n, None, id=f"{strategy}-{n}gpu") for strategy, n in cases((1, 2, 4))),
    *(pytest.param(CUSTOM, pp * tp * dp, (pp, tp, dp), id=f"pp{pp}tp{tp}dp{dp}") for pp, tp, dp in CUSTOM_MESHES),
]


def spec_of(suite, strategy, num_gpus, degrees):
    if degrees is None:
        return suite.spec(strategy, num_gpus)
    names = ("pipeline_parallel_size", "tensor_parallel_size", "data_parallel_size")
    custom = Suite(suite.settings.model_copy(update=dict(zip(names, degrees, strict=True))))
    return custom.spec(strategy, num_gpus)


@pytest.mark.parametrize(("strategy", "num_gpus", "degrees"), LAYOUTS)
def test_greedy_run_is_transformers_and_what_the_layout_implies(greedy, expected, strategy, num_gpus, degrees):
    spec = spec_of(greedy, strategy, num_gpus, degrees)

    result = greedy.run(spec)

    assert {output.request_id: output.tokens for output in result.outputs} == expected
    assert result.verification.status == "exact"
    assert result.verification.tokens_compared == sum(map(len, expected.values()))
    assert result.figures.throughput_tok_s > 0
    check_parameters(result)
    check_collectives(result)


@pytest.mark.parametrize(("strategy", "num_gpus", "degrees"), LAYOUTS)
def test_sampled_run_is_the_single_device_run(sampled, expected, strategy, num_gpus, degrees):
    result = sampled.run(spec_of(sampled, strategy, num_gpus, degrees), timed=False)

    assert result.verification.status == "exact"
    assert {output.request_id: output.tokens for output in result.outputs} != expected


MODES = [
    {"backend": "gloo"},
    {"linear": "packed"},
    {"dtype": "bfloat16", "linear": "plain"},
    {"dtype": "bfloat16", "linear": "packed", "backend": "gloo"},
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()))
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_every_mode_is_right_and_recorded(workload, expected, mode, sampling):
    dtype = mode.get("dtype", "float32")
    if mode.get("linear") == "packed" and not can_pack(getattr(torch, dtype), torch.device("cpu")):
        pytest.skip(f"needs packed products of {dtype}, which this processor or build of torch does not have")
    suite = Suite(make_settings("smoke", {**workload, **mode, **sampling}))

    for strategy, num_gpus in (("pure_data_parallel", 1), ("pipeline_data_hybrid", 2), ("full_model_parallel", 4)):
        result = suite.run(suite.spec(strategy, num_gpus))

        assert result.verification.passed
        assert {name: getattr(result.spec.execution, name) for name in mode} == mode
        assert {rank.holding.linear for rank in result.ranks} == {mode.get("linear", "plain")}
        if not sampling and "dtype" not in mode:
            assert {output.request_id: output.tokens for output in result.outputs} == expected


def check_parameters(result):
    """Together the ranks of a replica hold the model once, but for what is replicated by design."""
    shape, mesh = result.spec.model.architecture, result.spec.mesh
    table = shape.vocab_size * WIDTH
    positions = shape.max_positions * WIDTH
    per_layer_split = 3 * WIDTH * WIDTH + 3 * WIDTH + WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH + 4 * WIDTH
    per_layer_replicated = 4 * WIDTH + 2 * WIDTH  # two norms, two row-parallel biases
    for replica in range(mesh.dp):
        ranks = [rank for rank in result.ranks if rank.place.replica == replica]
        held = sum(rank.holding.parameter_bytes for rank in ranks)
        model = NUM_LAYERS * (per_layer_split + mesh.tp * per_layer_replicated)
        embeddings = mesh.tp * (table + positions) + (table if mesh.pp > 1 else 0)
        final_norm = mesh.tp * 2 * WIDTH
        assert held == 4 * (model + embeddings + final_norm)
        for stage in range(mesh.pp):
            sizes = [rank.holding.parameter_bytes for rank in ranks if rank.place.stage == stage]
            layers = next(
                rank.holding.layers[1] - rank.holding.layers[0] for rank in ranks if rank.place.stage == stage
            )
            # A column and its bias, in each layer, and a row of the vocabulary: what does not divide.
            assert max(sizes) - min(sizes) <= 4 * (layers * (2 * WIDTH + 3 * 16 + 1) + WIDTH)
        assert [rank.holding.num_heads for rank in ranks if rank.place.stage == 0] == sorted(
            (rank.holding.num_heads for rank in ranks if rank.place.stage == 0), reverse=True
        )
        assert sum(rank.holding.num_heads for rank in ranks if rank.place.stage == 0) == 5
        assert (
            sum(rank.holding.layers[1] - rank.holding.layers[0] for rank in ranks if rank.place.shard == 0)
            == NUM_LAYERS
        )


def check_collectives(result):
    """Counted in one timed round: 2 all-reduces per layer and forward, one gather per token, one hop per boundary."""
    spec = result.spec
    pp, dp, tp = spec.mesh.pp, spec.mesh.dp, spec.mesh.tp
    requests = spec.workload.requests
    batches = [requests[start : start + BATCH_SIZE] for start in range(0, len(requests), BATCH_SIZE)]
    for rank in result.ranks:
        own = batches[rank.place.replica :: dp]
        forwards = sum(max(request.max_new_tokens for request in batch) for batch in own)
        rows = {max(request.max_new_tokens for request in batch): len(batch) for batch in own}
        assert set(rows.values()) == {BATCH_SIZE}
        prefill_rows = sum(BATCH_SIZE * max(len(r.prompt_ids) for r in batch) for batch in own)
        activation_bytes = 4 * WIDTH * (prefill_rows + BATCH_SIZE * (forwards - len(own)))
        counted = {count.op: (count.calls, count.bytes) for count in rank.generated.collectives}
        num_layers = rank.holding.layers[1] - rank.holding.layers[0]
        expected = {}
        if tp > 1:
            expected["all_reduce"] = (2 * num_layers * forwards, 2 * num_layers * activation_bytes)
            if rank.place.stage == pp - 1:
                expected["gather"] = (forwards, forwards * BATCH_SIZE * 2 * 4)
        if rank.place.stage < pp - 1:
            expected["send_activation"] = (forwards, activation_bytes)
        if pp > 1 and rank.place.stage == pp - 1:
            expected["send_token"] = (forwards - len(own), (forwards - len(own)) * BATCH_SIZE * 8)
        assert counted == expected


def test_too_few_batches_are_split_into_lanes(workload):
    suite = Suite(make_settings("smoke", {**workload, "batch_size": 8, "num_iterations": 1}))

    result = suite.run(suite.spec("pipeline_data_hybrid", 2))

    assert result.verification.passed
    # Two lanes of four rows for the one batch of eight: two prefills cross the boundary.
    sends = next(c for c in result.ranks[0].generated.collectives if c.op == "send_activation")
    assert sends.calls == 7 + 6


def test_more_replicas_than_batches_share_the_rows(workload):
    suite = Suite(make_settings("smoke", {**workload, "batch_size": 4, "num_iterations": 1}))

    result = suite.run(suite.spec("pure_data_parallel", 4))

    assert result.verification.passed
    assert all(len(rank.rounds[0].timelines) == 1 for rank in result.ranks)


def test_bfloat16_run_verifies(workload):
    suite = Suite(make_settings("smoke", {**workload, "dtype": "bfloat16", "num_iterations": 1}))

    result = suite.run(suite.spec("tensor_data_hybrid", 2))

    assert result.verification.passed
    assert result.ranks[0].holding.parameter_bytes < result.ranks[0].holding.num_heads * 10**6


def test_gpt2_xl_heads_run_under_tp_8(make_tiny_checkpoint, tmp_path):
    """gpt2-xl's 25 heads, over 8 ranks."""
    directory = make_tiny_checkpoint(tmp_path, n_layer=1, n_head=25, head_size=8, vocab_size=101, n_positions=32)
    given = {
        "model": str(directory),
        "prompts": "random",
        "num_samples": 2,
        "prompt_tokens": 9,
        "max_length": 4,
        "num_iterations": 1,
    }
    suite = Suite(make_settings("smoke", {**given, "tensor_parallel_size": 8, "device": "cpu"}))

    result = suite.run(suite.spec(CUSTOM, 8))

    assert result.verification.passed
    assert [rank.holding.num_heads for rank in result.ranks] == [4, 3, 3, 3, 3, 3, 3, 3]
    assert (
        max(r.holding.parameter_bytes for r in result.ranks) - min(r.holding.parameter_bytes for r in result.ranks)
        < 5000
    )
