"""From the ranks' clocks to figures: the slowest rank is the truth."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import median

from gpt_parallel.result import BatchTimeline, Figures, RankReport, RoundReport
from gpt_parallel.spec import RunSpec


def figures(spec: RunSpec, ranks: Sequence[RankReport]) -> Figures:
    """Round times, throughput and latencies of a run; empty figures where no round was timed."""
    if not ranks or not ranks[0].rounds:
        return Figures()
    rounds = list(zip(*(rank.rounds for rank in ranks), strict=True))
    seconds = tuple(max(report.seconds for report in reports) for reports in rounds)
    throughput = spec.workload.num_output_tokens / median(seconds)
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
        ttft_samples_s=tuple(ttft),
        itl_samples_s=tuple(itl),
        tpot_samples_s=tuple(tpot),
        latency_samples_s=tuple(latency),
        ttft_s=median(ttft),
        itl_s=median(itl) if itl else None,
        tpot_s=median(tpot) if tpot else None,
        latency_s=median(latency),
    )


def _batch_times(reports: Iterable[RoundReport]) -> Iterable[tuple[float, tuple[float, ...]]]:
    """(start, token times) per batch of a round: the earliest shard starts it, the latest one has the token."""
    timelines: dict[str, list[BatchTimeline]] = {}
    for report in reports:
        for timeline in report.timelines:
            timelines.setdefault(timeline.batch_id, []).append(timeline)
    for parts in timelines.values():
        start = min(part.start_s for part in parts if part.start_s is not None)
        tokens = [part.token_times_s for part in parts if part.token_times_s]
        yield start, tuple(max(times) for times in zip(*tokens, strict=True))
