"""Computes the figures of a run from its ranks' times; the slowest rank determines a round."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import fmean, median

from gpt_parallel.schema.result import BatchTimeline, Figures, RankReport, RoundReport
from gpt_parallel.schema.run import RunSpec
from gpt_parallel.schema.telemetry import Energy, GpuTelemetry


def figures(spec: RunSpec, ranks: Sequence[RankReport]) -> Figures:
    """Round times, throughput and latencies of a run; empty figures where no round was timed."""
    if not ranks or not ranks[0].rounds:
        return Figures()
    rounds = list(zip(*(rank.rounds for rank in ranks), strict=True))
    seconds = tuple(max(report.seconds for report in reports) for reports in rounds)
    throughput = spec.workload.num_output_tokens / median(seconds)
    imbalance = tuple(_imbalance([report.seconds for report in reports]) for reports in rounds)
    ttft: list[float] = []
    itl: list[float] = []
    tpot: list[float] = []
    latency: list[float] = []
    for start, tokens in (times for reports in rounds for times in _batch_times(reports)):
        ttft.append(tokens[0] - start)
        latency.append(tokens[-1] - start)
        itl += [later - earlier for earlier, later in pairwise(tokens)]
        if len(tokens) > 1:
            tpot.append((tokens[-1] - tokens[0]) / (len(tokens) - 1))
    return Figures(
        round_seconds=seconds,
        throughput_tok_s=throughput,
        throughput_per_gpu_tok_s=throughput / spec.num_gpus,
        imbalance_by_round=imbalance,
        imbalance=median(imbalance),
        ttft_samples_s=tuple(ttft),
        itl_samples_s=tuple(itl),
        tpot_samples_s=tuple(tpot),
        latency_samples_s=tuple(latency),
        ttft_s=median(ttft),
        itl_s=median(itl) if itl else None,
        tpot_s=median(tpot) if tpot else None,
        latency_s=median(latency),
    )


def _imbalance(seconds: Sequence[float]) -> float:
    """The slowest rank's time ÷ the mean; 1 is a perfect balance."""
    return max(seconds) / fmean(seconds) if max(seconds) else 1.0


def energy(spec: RunSpec, gpus: Sequence[GpuTelemetry], reason: str) -> Energy:
    """Joules of all GPUs over the timed rounds, and for each output token; `reason` explains missing GPUs."""
    problems = [f"{gpu.name}: {gpu.unavailable['energy_j']}" for gpu in gpus if gpu.energy_j is None]
    if problems or not gpus:
        why = "; ".join(problems) or reason
        return Energy(unavailable={"energy_j": why, "energy_j_per_token": why})
    total = sum(gpu.energy_j or 0.0 for gpu in gpus)
    return Energy(energy_j=total, energy_j_per_token=total / (spec.workload.num_output_tokens * spec.execution.rounds))


def _batch_times(reports: Iterable[RoundReport]) -> Iterable[tuple[float, tuple[float, ...]]]:
    """(start, token times) per batch of a round: from the earliest shard's start and the latest shard's tokens."""
    timelines: dict[str, list[BatchTimeline]] = {}
    for report in reports:
        for timeline in report.timelines:
            timelines.setdefault(timeline.batch_id, []).append(timeline)
    for parts in timelines.values():
        start = min(part.start_s for part in parts if part.start_s is not None)
        tokens = [part.token_times_s for part in parts if part.token_times_s]
        yield start, tuple(max(times) for times in zip(*tokens, strict=True))
