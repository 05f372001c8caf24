"""Small valid objects for tests to vary."""

from gpt_parallel.inputs.models import ARCHITECTURES
from gpt_parallel.schema.earlier import nested_report
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.result import (
    BatchTimeline,
    Environment,
    Figures,
    Output,
    RankReport,
    RoundReport,
    RunResult,
    TokenRecord,
    TokenScore,
    Verification,
)
from gpt_parallel.schema.run import ExecutionSpec, MeshSpec, Request, RunSpec, WorkloadSpec
from gpt_parallel.schema.summary import CaseSummary, LaunchFigures


def run_spec(**changes):
    fields = {
        "strategy": "pure_data_parallel",
        "mesh": MeshSpec(),
        "model": ModelSpec(name="gpt2-nano", architecture=ARCHITECTURES["gpt2-nano"], weights="random"),
        "workload": WorkloadSpec(requests=(Request(request_id=0, prompt_ids=(1, 2), max_new_tokens=3),), batch_size=1),
        "execution": ExecutionSpec(device="cpu", dtype="float32", backend="gloo"),
    }
    return RunSpec(**{**fields, **changes})


def rank_report(rank=0, *, rounds=(), records=(), **changes):
    """Of fields side by side, wherever in the report they belong."""
    fields = {"stage": 0, "replica": 0, "shard": 0, "layers": (0, 4), "num_heads": 5, "parameter_bytes": 1000}
    return RankReport(**nested_report({**fields, "rank": rank, "rounds": rounds, "records": records, **changes}))


def round_report(seconds, start=None, tokens=(), batch_id="0", changed=()):
    timeline = BatchTimeline(batch_id=batch_id, start_s=start, token_times_s=tokens)
    return RoundReport(seconds=seconds, timelines=(timeline,), changed=changed)


def run_result(spec):
    """One launch of two rounds, with figures that no decimal writes."""
    return RunResult(
        spec=spec,
        weights_origin="random (seed 0)",
        verification=Verification(status="exact", tokens_compared=3),
        figures=Figures(round_seconds=(0.1 + 0.2, 1 / 3), throughput_tok_s=2 / 3),
        environment=Environment(
            **dict.fromkeys(("gpt_parallel", "torch", "python", "platform", "cpu", "hostname"), "x"),
            num_cores=2,
            device_names=("CPU",),
        ),
        ranks=(rank_report(rounds=(round_report(0.1 + 0.2, start=1e-9),)),),
        outputs=(Output(request_id=0, tokens=(1, 2, 3), text="Grüß"),),
    )


def token_record(request_id=0, tokens=(1, 2, 3), logprobs=None, scale=2.0):
    logprobs = logprobs or tuple(-1.0 for _ in tokens)
    return TokenRecord(
        request_id=request_id, tokens=tokens, logprobs=logprobs, logit_scales=tuple(scale for _ in tokens)
    )


def token_score(request_id=0, margins=(0.0, 0.0, 0.0), logprobs=None, scale=2.0):
    """Teacher-forced scores of tokens that are as probable as `token_record`'s."""
    same = tuple(scale for _ in margins)
    logprobs = logprobs or tuple(-1.0 for _ in margins)
    return TokenScore(request_id=request_id, margins=margins, scales=same, logprobs=logprobs, logit_scales=same)


def summary(throughputs=(100.0,), **changes):
    """A case's row, one launch of two rounds per given throughput; 64 output tokens."""
    launches = tuple(
        LaunchFigures(
            round_seconds=(64 / value, 64 / value),
            throughput_tok_s=value,
            ttft_s=1 / value,
            itl_s=0.1 / value,
            tpot_s=0.1 / value,
            latency_s=2 / value,
            peak_memory_bytes=int(1e9 / value),
        )
        for value in throughputs
    )
    middle = sorted(throughputs)[len(throughputs) // 2]
    latencies = {
        f"{name}_{kind}": number * 10 / middle
        for name, number in (("ttft", 0.1), ("tpot", 0.01), ("latency", 0.2))
        for kind in ("s", "mean_s", "p90_s")
    }
    fields = {
        "strategy": "pure_data_parallel",
        "num_gpus": 1,
        "mesh": "1",
        "pp": 1,
        "dp": 1,
        "tp": 1,
        "device": "cpu",
        "device_name": "CPU",
        "backend": "gloo",
        "model": "gpt2-nano",
        "weights": "random (seed 0)",
        "dtype": "float32",
        "workload": "8 requests × (32 + 8 tokens), batch 2",
        "workload_sha256": "ab" * 32,
        "prompts": "shipped prompts, bytes as token ids",
        "batch_size": 2,
        "num_requests": 8,
        "output_tokens": 64,
        "rounds": 2 * len(throughputs),
        "throughput_tok_s": middle,
        "throughput_per_gpu_tok_s": middle,
        **latencies,
        "ttft_p99_s": None,
        "tpot_p99_s": None,
        "latency_p99_s": None,
        "ttft_samples": 12,
        "tpot_samples": 12,
        "latency_samples": 12,
        "itl_s": 0.1 / middle,
        "verified": "exact",
        "tokens_compared": 64,
        "oversubscribed": False,
        "degenerate": False,
        "max_parameter_bytes": 7735040,
        "max_kv_cache_bytes": 409600,
        "max_peak_memory_bytes": 265000000,
        "peak_memory_bytes_by_rank": (265000000,),
        "torch": "2.13.0+cpu",
        "cpu": "AMD EPYC",
        "num_cores": 2,
        "cores_per_rank": 1,
        "hostname": "bench-1",
        "git_commit": "0123456789abcdef",
        "git_dirty": False,
        "launches": launches,
    }
    return CaseSummary(**{**fields, **changes})


def bench(case="pure_data_parallel-1gpu", throughputs=(100.0,), **changes):
    """One entry of a pytest-benchmark file, as a dictionary."""
    row = summary(throughputs, **changes)
    seconds = [64 / value for value in throughputs for _ in range(2)]
    return {
        "name": f"test_generation[{case}]",
        "fullname": f"benchmarks/test_generation.py::test_generation[{case}]",
        "group": "generation",
        "extra_info": row.model_dump(mode="json"),
        "stats": stats(seconds),
    }


def stats(seconds):
    ordered = sorted(seconds)
    return {
        "min": ordered[0],
        "max": ordered[-1],
        "mean": sum(ordered) / len(ordered),
        "median": ordered[len(ordered) // 2],
        "stddev": 0.0,
        "rounds": len(ordered),
    }


def document(*benches, **changes):
    """A whole pytest-benchmark file, as a dictionary."""
    fields = {
        "machine_info": {"node": "bench-1", "cpu": {"brand_raw": "AMD EPYC", "count": 2}},
        "commit_info": {"id": "0123456789abcdef", "branch": "main", "dirty": False},
        "benchmarks": list(benches),
        "datetime": "2026-01-02T03:04:05+00:00",
        "version": "5.3.1",
    }
    return {**fields, **changes}
