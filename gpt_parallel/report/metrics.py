"""Tidy rows, one per case and run, in stated units."""

from collections.abc import Sequence

import pandas as pd

from gpt_parallel.report.load import Case, SavedRun
from gpt_parallel.result import CaseSummary

COLUMNS = (
    "run",
    "case",
    "strategy",
    "num_gpus",
    "mesh",
    "model",
    "weights",
    "dtype",
    "device_name",
    "throughput_tok_s",
    "throughput_min_tok_s",
    "throughput_max_tok_s",
    "throughput_per_gpu_tok_s",
    "speedup",
    "parallel_efficiency",
    "round_median_s",
    "round_min_s",
    "round_max_s",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p90_s",
    "latency_p99_s",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p50_s",
    "tpot_p90_s",
    "tpot_p99_s",
    "utilisation_percent",
    "peak_memory_bytes",
    "parameter_bytes",
    "kv_cache_bytes",
    "rounds",
    "launches",
    "verified",
    "oversubscribed",
    "degenerate",
    "commit",
    "branch",
)
# Without their own types one plain benchmark, which has none of these, would make them all floats and objects.
_COUNTS = ("num_gpus", "rounds", "launches", "peak_memory_bytes", "parameter_bytes", "kv_cache_bytes")
_FLAGS = ("oversubscribed", "degenerate")


def to_frame(runs: Sequence[SavedRun]) -> pd.DataFrame:
    """One row per case and run, columns as in `COLUMNS`; what a plain benchmark does not have is empty."""
    rows = [_row(run, case, single_device_cases(run)) for run in runs for case in run.cases]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(_FLAGS, "boolean"))


def single_device_cases(run: SavedRun) -> dict[str, CaseSummary]:
    """The one-device case of each workload."""
    return {summary.workload_sha256: summary for summary in run.summaries if summary.num_gpus == 1}


def _row(run: SavedRun, case: Case, single: dict[str, CaseSummary]) -> dict[str, object]:
    row: dict[str, object] = {
        "run": run.label,
        "case": case.name,
        "round_median_s": case.stats.median,
        "round_min_s": case.stats.min,
        "round_max_s": case.stats.max,
        "rounds": case.stats.rounds,
        "commit": run.commit,
        "branch": run.branch,
    }
    if case.summary is not None:
        row |= _generation_columns(case.summary, case, single.get(case.summary.workload_sha256))
    return row


_AS_THEY_ARE = (
    *("strategy", "num_gpus", "mesh", "model", "weights", "dtype", "device_name"),
    *("throughput_tok_s", "throughput_per_gpu_tok_s", "verified", "oversubscribed", "degenerate"),
)


def speedup_over(summary: CaseSummary, single: CaseSummary | None) -> float | None:
    """Throughput over the one-device case's; None where either has none."""
    if single is None or not summary.throughput_tok_s or not single.throughput_tok_s:
        return None
    return summary.throughput_tok_s / single.throughput_tok_s


def _generation_columns(summary: CaseSummary, case: Case, single: CaseSummary | None) -> dict[str, object]:
    speedup = speedup_over(summary, single)
    columns: dict[str, object] = {name: getattr(summary, name) for name in _AS_THEY_ARE}
    for name in ("latency", "ttft", "tpot"):
        columns[f"{name}_p50_s"] = getattr(summary, f"{name}_s")
        columns |= {f"{name}_{kind}_s": getattr(summary, f"{name}_{kind}_s") for kind in ("mean", "p90", "p99")}
    return columns | {
        "throughput_min_tok_s": summary.output_tokens / case.stats.max,
        "throughput_max_tok_s": summary.output_tokens / case.stats.min,
        "speedup": speedup,
        "parallel_efficiency": speedup / summary.num_gpus if speedup else None,
        "peak_memory_bytes": summary.max_peak_memory_bytes,
        "parameter_bytes": summary.max_parameter_bytes,
        "kv_cache_bytes": summary.max_kv_cache_bytes,
        "launches": len(summary.launches),
    }
