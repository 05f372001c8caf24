"""Summarises a case's metrics and its GPUs' throttling, with the reasons for missing values."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from gpt_parallel.schema.metrics import METRICS
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.telemetry import Readings


def summarise_telemetry(results: Sequence[RunResult]) -> dict[str, Any]:
    """Medians over the launches that have a value; None if none has, with the reasons in `unavailable`."""
    fields: dict[str, Any] = {}
    for metric in METRICS:
        value = known_median(map(metric.of_run, results))
        fields[metric.name] = int(value) if metric.is_bytes and value is not None else value
    reasons = {reason for result in results for gpu in result.gpus for reason in gpu.throttle_reasons or ()}
    has_reasons = any(gpu.throttle_reasons is not None for result in results for gpu in result.gpus)
    fields["gpu_throttle_reasons"] = (", ".join(sorted(reasons)) or "none") if has_reasons else None
    fields["peak"] = next((result.efficiency.peak for result in results if result.efficiency), None)
    fields["unavailable"] = _reasons(results[-1], [name for name, value in fields.items() if value is None]) or None
    return fields


def known_median(values: Iterable[float | None]) -> float | None:
    """The median of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _reasons(result: RunResult, missing: Sequence[str]) -> str:
    """The reasons for missing values, each with the names of all values it explains."""
    names = {metric.source: metric.name for metric in METRICS} | {"throttle_reasons": "gpu_throttle_reasons"}
    known: dict[str, str] = {}
    readings: list[Readings | None] = [result.efficiency, result.energy, *result.gpus]
    readings += [rank.diagnostics.telemetry for rank in result.ranks]
    for reading in readings:
        for source, reason in (reading.unavailable if reading else {}).items():
            known.setdefault(names.get(source, source), reason)
    if result.energy and not result.gpus:
        of_gpus = [*(metric.name for metric in METRICS if metric.is_of_gpus), "gpu_throttle_reasons"]
        known |= dict.fromkeys(of_gpus, result.energy.unavailable.get("energy_j", ""))
    grouped: dict[str, list[str]] = {}
    for name in missing:
        if known.get(name):
            grouped.setdefault(known[name], []).append(name)
    return "; ".join(f"{', '.join(group)}: {reason}" for reason, group in grouped.items())
