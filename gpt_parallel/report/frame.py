"""Tidy rows, one per case and run, in stated units."""

from collections.abc import Sequence

import pandas as pd

from gpt_parallel.report.saved_run import Case, SavedRun
from gpt_parallel.schema.metrics import METRICS
from gpt_parallel.schema.summary import CaseSummary

READINGS = (*(metric.name for metric in METRICS), "peak", "gpu_throttle_reasons", "unavailable")
COLUMNS = (
    "run",
    "case",
    "engine",
    "strategy",
    "num_gpus",
    "mesh",
    "model",
    "weights",
    "dtype",
    "workload",
    "batch_size",
    "device_name",
    "cpu",
    "num_cores",
    "hostname",
    "throughput_tok_s",
    "throughput_min_tok_s",
    "throughput_max_tok_s",
    "throughput_per_gpu_tok_s",
    "speedup",
    "parallel_efficiency",
    "times_transformers",
    "round_median_s",
    "round_min_s",
    "round_max_s",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p90_s",
    "latency_p95_s",
    "latency_p99_s",
    "latency_samples",
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "ttft_samples",
    "tpot_mean_s",
    "tpot_p50_s",
    "tpot_p90_s",
    "tpot_p95_s",
    "tpot_p99_s",
    "tpot_samples",
    "utilisation_percent",
    "peak_memory_bytes",
    "parameter_bytes",
    "kv_cache_bytes",
    *READINGS,
    "rounds",
    "launches",
    "verified",
    "judge",
    "repeatable",
    "oversubscribed",
    "shared",
    "degenerate",
    "commit",
    "branch",
)
# Explicit types, because a plain benchmark without these values would turn the columns into floats and objects.
_COUNTS = (
    *("num_gpus", "batch_size", "num_cores", "rounds", "launches"),
    *("peak_memory_bytes", "parameter_bytes", "kv_cache_bytes"),
    *("latency_samples", "ttft_samples", "tpot_samples"),
    *(metric.name for metric in METRICS if metric.is_bytes),
)
_FLAGS = ("repeatable", "oversubscribed", "shared", "degenerate")


def to_frame(runs: Sequence[SavedRun]) -> pd.DataFrame:
    """One row per case and run, columns as in `COLUMNS`; what a plain benchmark does not have is empty."""
    rows = []
    for run in runs:
        single, transformers = single_device_cases(run), transformers_cases(run)
        rows += [_row(run, case, single, transformers) for case in run.cases]
    frame = pd.DataFrame({name: _column([row.get(name) for row in rows]) for name in COLUMNS})
    return frame.astype(dict.fromkeys(_COUNTS, "Int64") | dict.fromkeys(_FLAGS, "boolean"))


def _column(values: list[object]) -> "pd.Series[object]":
    """A column; texts stay Python's, as pyarrow's cannot hold all that a file's name may have."""
    return pd.Series(values, dtype=object if any(isinstance(value, str) for value in values) else None)


def single_device_cases(run: SavedRun) -> dict[str, CaseSummary]:
    """The one-device case of each workload."""
    return {case.workload_sha256: case for case in run.summaries if case.num_gpus == 1 and not case.is_peer}


def transformers_cases(run: SavedRun) -> dict[str, CaseSummary]:
    """transformers' own `generate` on each workload, where it was measured."""
    return {case.workload_sha256: case for case in run.summaries if case.engine == "transformers"}


def _row(
    run: SavedRun, case: Case, single: dict[str, CaseSummary], transformers: dict[str, CaseSummary]
) -> dict[str, object]:
    row: dict[str, object] = {
        "run": run.label,
        "case": case.name,
        "hostname": run.host,
        "round_median_s": case.stats.median,
        "round_min_s": case.stats.min,
        "round_max_s": case.stats.max,
        "rounds": case.stats.rounds,
        "commit": run.commit,
        "branch": run.branch,
    }
    if case.summary is not None:
        workload = case.summary.workload_sha256
        row |= _generation_columns(case.summary, case, single.get(workload))
        row["times_transformers"] = speedup_over(case.summary, transformers.get(workload))
    return row


_AS_THEY_ARE = (
    *("engine", "strategy", "num_gpus", "mesh", "model", "weights", "dtype", "workload", "batch_size"),
    *("device_name", "cpu", "num_cores", "hostname"),
    *("throughput_tok_s", "throughput_per_gpu_tok_s", "verified", "judge", "repeatable"),
    *("oversubscribed", "shared", "degenerate"),
)


def speedup_over(summary: CaseSummary, other: CaseSummary | None) -> float | None:
    """The throughput ratio of two cases; None where either has no throughput."""
    if other is None or not summary.throughput_tok_s or not other.throughput_tok_s:
        return None
    return summary.throughput_tok_s / other.throughput_tok_s


def _generation_columns(summary: CaseSummary, case: Case, single: CaseSummary | None) -> dict[str, object]:
    speedup = None if summary.is_peer else speedup_over(summary, single)
    columns: dict[str, object] = {name: getattr(summary, name) for name in (*_AS_THEY_ARE, *READINGS)}
    for name in ("latency", "ttft", "tpot"):
        columns[f"{name}_p50_s"] = getattr(summary, f"{name}_s")
        columns |= {f"{name}_{kind}_s": getattr(summary, f"{name}_{kind}_s") for kind in ("mean", "p90", "p95", "p99")}
        columns[f"{name}_samples"] = getattr(summary, f"{name}_samples")
    return columns | {
        "throughput_min_tok_s": summary.output_tokens / case.stats.max,
        "throughput_max_tok_s": summary.output_tokens / case.stats.min,
        "speedup": speedup,
        "parallel_efficiency": speedup / summary.num_gpus if speedup else None,
        "utilisation_percent": _utilisation_percent(summary),
        "peak_memory_bytes": summary.max_peak_memory_bytes,
        "parameter_bytes": summary.max_parameter_bytes,
        "kv_cache_bytes": summary.max_kv_cache_bytes,
        "launches": len(summary.launches),
    }


def _utilisation_percent(summary: CaseSummary) -> float | None:
    """The GPU's utilisation from its driver, or the share of their cores' time that CPU ranks used."""
    share: float | None = summary.cpu_share
    percent: float | None = summary.gpu_utilisation_percent
    return percent if summary.device == "cuda" else None if share is None else share * 100
