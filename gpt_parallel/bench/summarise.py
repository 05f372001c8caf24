"""Summarises the launches of a case in one row."""

import hashlib
from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import Any

from pydantic_core import to_json

from gpt_parallel.bench.summarise_telemetry import known_median, summarise_telemetry
from gpt_parallel.schema.families.registry import family_of
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.summary import CaseSummary, LaunchFigures

_STATUS_ORDER = ("exact", "tie", "skipped", "mismatch", "fault-injected")


def summarise(results: Sequence[RunResult]) -> CaseSummary:
    """The summary of a case from its launches, at least one."""
    first = results[0]
    launches = tuple(_launch(result) for result in results)
    peaks = _largest_by_rank(results)
    throughput = known_median(launch.throughput_tok_s for launch in launches)
    return CaseSummary(
        **_layout(first),
        **_work(first),
        **_machine(first),
        rounds=sum(len(launch.round_seconds) for launch in launches),
        throughput_tok_s=throughput,
        throughput_per_gpu_tok_s=throughput / first.spec.num_gpus if throughput else None,
        itl_s=known_median(launch.itl_s for launch in launches),
        **_latencies("ttft", launches, [r.figures.ttft_samples_s for r in results]),
        **_latencies("tpot", launches, [r.figures.tpot_samples_s for r in results]),
        **_latencies("latency", launches, [r.figures.latency_samples_s for r in results]),
        verified=max((r.verification.status for r in results), key=_STATUS_ORDER.index),
        tokens_compared=min(result.verification.tokens_compared for result in results),
        judge=first.verification.judge,
        repeatable=_all_repeat([result.verification.repeatable for result in results]),
        shared=any(rank.place.shared for result in results for rank in result.ranks),
        max_peak_memory_bytes=max((peak for peak in peaks if peak is not None), default=None),
        peak_memory_bytes_by_rank=peaks,
        launches=launches,
        **summarise_telemetry(results),
    )


def _layout(result: RunResult) -> dict[str, Any]:
    """The fields about engine, device, layout and the ranks' parts."""
    spec, execution = result.spec, result.spec.execution
    held = [rank.holding for rank in result.ranks if rank.holding]
    return {
        "engine": spec.engine,
        "strategy": spec.strategy,
        "num_gpus": spec.num_gpus,
        "mesh": str(spec.mesh),
        "pp": spec.mesh.pp,
        "dp": spec.mesh.dp,
        "tp": spec.mesh.tp,
        "kv_copies": max((each.kv_copies for each in held), default=1),
        "device": execution.device,
        "backend": execution.backend,
        "linear": held[0].linear if held else None,
        "attention": execution.attention,
        "attention_prefill": _kernels(result, "prefill"),
        "attention_decode": _kernels(result, "decode"),
        "decode": execution.decode,
        "oversubscribed": execution.oversubscribed,
        "degenerate": spec.degenerate,
        "cores_per_rank": execution.cores_per_rank,
        "num_hosts": len({rank.place.host for rank in result.ranks}),
        "max_parameter_bytes": max((each.parameter_bytes for each in held), default=0),
        "max_kv_cache_bytes": max((each.kv_cache_bytes or 0 for each in held), default=0),
    }


def _work(result: RunResult) -> dict[str, Any]:
    """The fields about model and workload."""
    spec = result.spec
    return {
        "model": spec.model.name,
        "weights": result.weights_origin,
        "dtype": spec.execution.dtype,
        "workload": spec.workload.shape,
        "workload_sha256": _workload_digest(result),
        "prompts": spec.workload.source,
        "batch_size": spec.workload.batch_size,
        "num_requests": len(spec.workload.requests),
        "output_tokens": spec.workload.num_output_tokens,
    }


def _machine(result: RunResult) -> dict[str, Any]:
    environment = result.environment
    names = ("torch", "cpu", "num_cores", "hostname", "git_commit", "git_dirty")
    return {"device_name": environment.device_names[0], **{name: getattr(environment, name) for name in names}}


def percentile(samples: Sequence[float], percent: int) -> float | None:
    """The percentile, linearly interpolated; None unless at least one sample is expected to lie beyond it."""
    if len(samples) * (100 - percent) < 100:
        return None
    return quantiles(samples, n=100, method="inclusive")[percent - 1]


def _launch(result: RunResult) -> LaunchFigures:
    figures = result.figures
    return LaunchFigures(
        round_seconds=figures.round_seconds,
        throughput_tok_s=figures.throughput_tok_s,
        ttft_s=figures.ttft_s,
        itl_s=figures.itl_s,
        tpot_s=figures.tpot_s,
        latency_s=figures.latency_s,
        peak_memory_bytes=max(filter(None, _peaks(result)), default=None),
    )


def _latencies(
    name: str, launches: Sequence[LaunchFigures], samples: Sequence[Sequence[float]]
) -> dict[str, float | int | None]:
    pooled = [value for values in samples for value in values]
    return {
        f"{name}_s": known_median(getattr(launch, f"{name}_s") for launch in launches),
        f"{name}_mean_s": fmean(pooled) if pooled else None,
        f"{name}_p90_s": percentile(pooled, 90),
        f"{name}_p95_s": percentile(pooled, 95),
        f"{name}_p99_s": percentile(pooled, 99),
        f"{name}_samples": len(pooled),
    }


def _kernels(result: RunResult, phase: str) -> str | None:
    """The attention kernels of all ranks with layers."""
    known = [rank.generated.attention for rank in result.ranks if rank.generated and rank.generated.attention]
    found = (getattr(kernels, phase) for kernels in known)
    return "+".join(sorted({kernel for kernels in found if kernels for kernel in kernels.split("+")})) or None


def _all_repeat(launches: Sequence[bool | None]) -> bool | None:
    """Whether all launches repeat; None if no launch had verified timed rounds."""
    known = [repeats for repeats in launches if repeats is not None]
    return all(known) if known else None


def _largest_by_rank(results: Sequence[RunResult]) -> tuple[int | None, ...]:
    by_rank = zip(*map(_peaks, results), strict=True)
    return tuple(max(filter(None, peaks), default=None) for peaks in by_rank)


def _peaks(result: RunResult) -> list[int | None]:
    return [rank.diagnostics.peak_memory_bytes for rank in result.ranks]


def _workload_digest(result: RunResult) -> str:
    """A digest of model, weights, requests, sampling and number type, equal for comparable throughputs."""
    model = result.spec.model
    parts = (
        to_json(family_of(model.architecture).to_config(model.architecture)).decode(),
        model.weights,
        str(model.seed),
        result.spec.workload.model_dump_json(exclude={"source"}),
        result.spec.execution.dtype,
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
