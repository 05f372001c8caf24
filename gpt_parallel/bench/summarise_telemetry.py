"""Telemetry, derived figures and the breakdown of a case's launches, as flat fields of its row."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import Any

from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.telemetry import GpuTelemetry, RankTelemetry, Readings

_PARTS = ("compute", "communication", "waiting", "sampling", "host")
_NO_GPU = (
    *("gpu_utilisation_percent", "gpu_memory_used_bytes", "gpu_power_w"),
    *("gpu_sm_clock_mhz", "gpu_memory_clock_mhz", "gpu_temperature_c", "gpu_throttle_reasons"),
)


def summarise_readings(results: Sequence[RunResult]) -> dict[str, Any]:
    """Medians over launches of what each of them has; None where none has it, with the reasons in `unavailable`."""
    fields: dict[str, Any] = {}
    for name, value in _FIELDS.items():
        fields[name] = _median(map(value, results))
    for name in _BYTES:
        fields[name] = None if fields[name] is None else int(fields[name])
    reasons = {reason for result in results for gpu in result.gpus for reason in gpu.throttle_reasons or ()}
    has_reasons = any(gpu.throttle_reasons is not None for result in results for gpu in result.gpus)
    fields["gpu_throttle_reasons"] = (", ".join(sorted(reasons)) or "none") if has_reasons else None
    fields["peak"] = next((result.efficiency.peak for result in results if result.efficiency), None)
    fields["unavailable"] = _reasons(results[-1], [name for name, value in fields.items() if value is None]) or None
    return fields


def _reasons(result: RunResult, missing: Sequence[str]) -> str:
    """Why values are missing, each reason once with the names of all it explains."""
    known: dict[str, str] = {}
    readings: list[Readings | None] = [result.efficiency, result.energy, *result.gpus]
    readings += [rank.telemetry for rank in result.ranks]
    for reading in readings:
        for name, reason in (reading.unavailable if reading else {}).items():
            known.setdefault(_FLAT_NAMES.get(name, name), reason)
    if result.energy and not result.gpus:
        known |= dict.fromkeys(_NO_GPU, result.energy.unavailable.get("energy_j", ""))
    grouped: dict[str, list[str]] = {}
    for name in missing:
        if known.get(name):
            grouped.setdefault(known[name], []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in grouped.items())


_FLAT_NAMES = {
    **{name.removeprefix("gpu_"): name for name in _NO_GPU},
    "resident_bytes": "max_resident_bytes",
    "proportional_bytes": "max_proportional_bytes",
    "peak_reserved_bytes": "max_reserved_bytes",
}


def _of_run(owner: str, name: str) -> Callable[[RunResult], float | None]:
    return lambda result: getattr(getattr(result, owner), name, None)


def _of_ranks(name: str, combine: Callable[[Iterable[float]], float]) -> Callable[[RunResult], float | None]:
    return lambda result: _combined([rank.telemetry for rank in result.ranks], name, combine)


def _of_gpus(name: str, combine: Callable[[Iterable[float]], float]) -> Callable[[RunResult], float | None]:
    return lambda result: _combined(result.gpus, name, combine)


def _combined(
    readings: Sequence[RankTelemetry | None] | Sequence[GpuTelemetry],
    name: str,
    combine: Callable[[Iterable[float]], float],
) -> float | None:
    """None unless every rank, or every GPU, has the value: half a sum would look like a whole one."""
    values = [getattr(reading, name, None) for reading in readings]
    known = [value for value in values if value is not None]
    return combine(known) if known and len(known) == len(values) else None


def _share(part: str) -> Callable[[RunResult], float | None]:
    def share(result: RunResult) -> float | None:
        """Of the pass, over all ranks."""
        found = [rank.breakdown for rank in result.ranks if rank.breakdown]
        wall_s = sum(breakdown.wall_s for breakdown in found)
        return max(0.0, sum(getattr(b, f"{part}_s") for b in found) / wall_s) if wall_s else None

    return share


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


_FIELDS: dict[str, Callable[[RunResult], float | None]] = {
    "imbalance": _of_run("figures", "imbalance"),
    "mbu": _of_run("efficiency", "mbu"),
    "mfu": _of_run("efficiency", "mfu"),
    "cpu_share": _of_ranks("cpu_share", fmean),
    "max_resident_bytes": _of_ranks("resident_bytes", max),
    "max_proportional_bytes": _of_ranks("proportional_bytes", max),
    "max_reserved_bytes": _of_ranks("peak_reserved_bytes", max),
    "gpu_utilisation_percent": _of_gpus("utilisation_percent", fmean),
    "gpu_memory_used_bytes": _of_gpus("memory_used_bytes", max),
    "gpu_power_w": _of_gpus("power_w", sum),
    "gpu_sm_clock_mhz": _of_gpus("sm_clock_mhz", fmean),
    "gpu_memory_clock_mhz": _of_gpus("memory_clock_mhz", fmean),
    "gpu_temperature_c": _of_gpus("temperature_c", max),
    "energy_j_per_token": _of_run("energy", "energy_j_per_token"),
    **{f"breakdown_{part}": _share(part) for part in _PARTS},
}
_BYTES = ("max_resident_bytes", "max_proportional_bytes", "max_reserved_bytes", "gpu_memory_used_bytes")
