"""Launches that GPUs have no room for: NVML is faked at the boundary, and what ranks need is held to real ones."""

import math
import random
from itertools import accumulate
from typing import NamedTuple

import pynvml
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench import runner
from gpt_parallel.bench.suite import Suite
from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.families import build
from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import devices
from gpt_parallel.launch.gpu_memory import check_gpu_memory, needs
from gpt_parallel.launch.torch_build import TorchBuild
from gpt_parallel.layout.batches import deal_lanes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.run import ExecutionSpec, Job, JobKind, MeshSpec, Request, WorkloadSpec
from tests.support.factories import run_spec

GIB = 1 << 30


class Memory(NamedTuple):
    free: int
    used: int
    total: int


@pytest.fixture
def machine(monkeypatch):
    """machine(free GiB of each GPU, total): GPUs that NVML tells of."""

    def make(*free, total=24, capability=(9, 0), names=None):
        devices.cuda_devices.cache_clear()
        memory = [Memory(int(one * GIB), int((total - one) * GIB), total * GIB) for one in free]
        for name, answer in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: len(free),
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid[4:]),
            "nvmlDeviceGetUUID": lambda handle: f"GPU-{handle}",
            "nvmlDeviceGetName": lambda handle: names[handle] if names else "NVIDIA A10",
            "nvmlDeviceGetCudaComputeCapability": lambda handle: capability,
            "nvmlDeviceGetMemoryInfo": lambda handle: memory[handle],
        }.items():
            monkeypatch.setattr(pynvml, name, answer)

    monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild("2.13.0", "CUDA", "13.0"))
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    yield make
    devices.cuda_devices.cache_clear()


def workload(num_requests=8, batch_size=4, prompt=256, new=64):
    requests = [Request(request_id=n, prompt_ids=(1,) * prompt, max_new_tokens=new) for n in range(num_requests)]
    return WorkloadSpec(requests=tuple(requests), batch_size=batch_size)


def xl(mesh=None, dtype="float32", backend="nccl", **changes):
    """Six GiB of weights in float32, three in a type of two bytes."""
    return run_spec(
        mesh=mesh or MeshSpec(),
        model=ModelSpec(name="gpt2-xl", architecture=ARCHITECTURES["gpt2-xl"], weights="random"),
        execution=ExecutionSpec(device="cuda", dtype=dtype, backend=backend),
        **{"workload": workload(), **changes},
    )


def check(spec, kind=JobKind.GENERATE):
    check_gpu_memory(Job(kind=kind, spec=spec))


def refusal(spec):
    with pytest.raises(SpecError) as refused:
        check(spec)
    (problem,) = refused.value.problems
    return problem


def test_what_fits_is_not_refused(machine):
    machine(8)
    check(xl())
    machine(4)
    check(xl(dtype="bfloat16"))


def test_a_refusal_tells_what_a_rank_needs_what_is_free_and_which_type_would_fit(machine):
    machine(5.5)

    assert refusal(xl()) == (
        "pure_data_parallel-1gpu does not fit: GPU 0 (NVIDIA A10) has 5.5 of 24.0 GiB free, rank 0 needs at least "
        "6.8 GiB (weights 5.8, cache 0.7, the rest 0.3). What would fit: dtype 'bfloat16'"
    )


def test_older_gpus_are_advised_float16(machine):
    machine(5.5, capability=(7, 5))

    assert refusal(xl()).endswith("What would fit: dtype 'float16'")


def test_layouts_that_would_fit_are_named_with_their_fewest_devices(machine):
    machine(*[2.9] * 4)

    assert refusal(xl(MeshSpec(dp=4), "bfloat16")).endswith(
        "What would fit: tensor_data_hybrid on 2 device(s) or pipeline_data_hybrid on 2 device(s) or "
        "full_model_parallel on 4 device(s)"
    )


def test_the_largest_halved_batch_that_would_fit_is_named(machine):
    machine(8)
    many = xl(dtype="bfloat16", workload=workload(64, 64))

    assert refusal(many).endswith("What would fit: batch size 32")


def test_where_one_change_is_not_enough_several_are_named(machine):
    machine(2.2, 2.2)

    assert refusal(xl(workload=workload(64, 64))).endswith(
        "What would fit: tensor_data_hybrid on 2 device(s), dtype 'bfloat16', batch size 1, all together"
    )


def test_where_nothing_would_fit_that_is_said(machine):
    machine(0.5, 0.5)

    assert "No number type, layout or batch size fits here; use a smaller model" in refusal(xl())


def test_ranks_of_one_gpu_are_added_up(machine):
    machine(24, 6.5)
    spec = xl(MeshSpec(dp=4), "bfloat16", "gloo")

    problem = refusal(spec)

    assert "GPU 0" not in problem
    assert "GPU 1 (NVIDIA A10) has 6.5 of 24.0 GiB free, rank 1 needs at least" in problem
    assert "rank 3 needs at least" in problem
    assert "together 6." in problem
    check(xl(MeshSpec(dp=2), "bfloat16"))


def test_only_the_gpus_that_ranks_take_are_looked_at(machine):
    machine(24, 1)
    check(xl())


def test_a_hidden_gpu_is_no_room(machine, monkeypatch):
    machine(24, 5.5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    assert "GPU 0 (NVIDIA A10) has 5.5 of 24.0 GiB free" in refusal(xl())


def test_what_is_not_known_is_not_refused(machine, monkeypatch):
    machine(1, 1, names=["NVIDIA A10", "NVIDIA L4"])  # CUDA may count them the other way round
    check(xl())
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert "GPU 0 (NVIDIA A10) has 1.0" in refusal(xl())

    def fail(*arguments):
        raise pynvml.NVMLError_NotSupported

    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", fail)
    check(xl())
    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    check(xl())


def test_ranks_on_cores_and_jobs_that_do_not_generate_are_never_refused(machine):
    machine(0)
    check(xl().model_copy(update={"execution": ExecutionSpec(device="cpu", dtype="float32", backend="gloo")}))
    check(xl(), JobKind.SCORE)


def test_the_reference_is_refused_as_such_and_cases_can_do_without(machine):
    machine(2.9, 2.9)

    problem = refusal(xl(MeshSpec(tp=2), "bfloat16").single_device())

    assert problem.startswith("the single-device reference does not fit: GPU 0 (NVIDIA A10) has 2.9")
    assert "What would fit: the no-verify option with tensor_data_hybrid on 2 device(s)" in problem


def test_memory_is_looked_at_when_the_devices_are_claimed_and_before_ranks_start(machine, monkeypatch):
    started = []
    machine(5.5)

    def claim(*arguments):
        machine(5)
        return devices_claimed

    class Claimed:
        cores, are_shared = (0,), False

        def __enter__(self):
            return self

        def __exit__(self, *error):
            started.append("given back")

    devices_claimed = Claimed()
    monkeypatch.setattr(runner, "claim_devices", claim)
    monkeypatch.setattr(runner, "launch", lambda job, **others: started.append(job))
    suite = Suite(make_settings("xl", {"weights": "random", "dtype": "float32"}))
    spec = suite.spec("pure_data_parallel", 1)

    with pytest.raises(SpecError, match=r"the single-device reference does not fit.* has 5\.0 of 24\.0 GiB free"):
        suite.run(spec)

    assert started == ["given back"]


@pytest.mark.parametrize(
    ("mesh", "num_samples"),
    [
        ({"tensor_parallel_size": 2}, 8),
        ({"pipeline_parallel_size": 2, "data_parallel_size": 2}, 3),
        ({"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, 5),
    ],
    ids=str,
)
def test_weights_and_caches_are_what_ranks_report(make_suite, tmp_path, mesh, num_samples):
    lines = [f'{{"prompt_ids": {[1] * (3 + n % 4)}, "max_length": {2 + n % 3}}}\n' for n in range(num_samples)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(lines))
    suite = make_suite(prompts=str(prompts), num_iterations=1, telemetry=False, **mesh)
    spec = suite.spec("custom", math.prod(mesh.values()))

    ranks = suite.runner.run(spec).ranks

    assert [(need.weights, need.cache) for need in needs(spec)] == [
        (rank.holding.parameter_bytes, rank.holding.kv_cache_bytes) for rank in ranks
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_counted_of_a_prompt_pass_is_there_in_a_real_one(seed, family, dtype):
    """Measured on a CPU, whose kernels hold no less than what is counted."""
    choose = random.Random(seed)
    width, vocabulary = choose.choice([32, 64]), choose.choice([97, 20000])
    sizes = {
        "num_layers": choose.randint(1, 3),
        "num_heads": 4,
        "hidden_size": width,
        "mlp_size": choose.choice([1, 4]) * width,
        "vocab_size": vocabulary,
        "max_positions": 256,
    }
    if family == "llama":
        sizes |= {"family": family, "num_kv_heads": 2, "gated_mlp": True, "rope": {"rotary_size": width // 4}}
    shape = Architecture.model_validate(sizes)
    spec = run_spec(
        model=ModelSpec(name="any", architecture=shape, weights="random"),
        workload=workload(choose.randint(1, 8), 8, choose.choice([2, 200]), 1),
        execution=ExecutionSpec(device="cpu", dtype=dtype, backend="gloo"),
    )
    mesh, device = Mesh(spec.mesh, 0), torch.device("cpu")
    model, collectives = build(shape, Part.whole(shape), getattr(torch, dtype)), Collectives(mesh, None)
    for parameter, _ in model.parameters():
        parameter.normal_(0, 0.02)
    sampler = Sampler(spec.workload.sampling, shape, range(vocabulary), collectives, 1, device)

    with torch.inference_mode():
        generator = Generator(model, mesh, collectives, sampler, deal_lanes(spec.workload, mesh))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
            list(generator.run(record=True))

    memory = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]
    (need,) = needs(spec)
    counted = need.rest - (208 << 20)  # of a CUDA context and cuBLAS
    assert 0 < counted <= max(accumulate(changes))
