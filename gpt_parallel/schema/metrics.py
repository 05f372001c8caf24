"""The table of metrics beside speed: a row has a metric's source, and its form in files, tables and reports.

A new metric is a row here, and the code that puts its value into a `RunResult`.
"""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.telemetry import GpuTelemetry, RankTelemetry

Value = Callable[[RunResult], float | None]
Combine = Callable[[Iterable[float]], float]


class Metric(NamedTuple):
    """A metric of a launch, which may be missing. A case's value is the median over its launches.

    `name`: its field in a case's row and its column in the CSV. `source`: its name in the
    reading it comes from, whose `unavailable` has the reason for a missing value. With `heading` the report's table
    has a column for it if any case has a value: `form` formats the number, `unit` follows it, and `text_heading` is the
    heading with line breaks for narrow tables.
    """

    name: str
    of_run: Value
    source: str
    heading: str = ""
    form: str = "{:.4g}"
    unit: str = ""
    text_heading: str = ""
    is_bytes: bool = False
    is_of_gpus: bool = False


def _of_run(owner: str, name: str) -> Value:
    return lambda result: getattr(getattr(result, owner), name, None)


def _of_ranks(name: str, combine: Combine) -> Value:
    return lambda result: _combined([rank.diagnostics.telemetry for rank in result.ranks], name, combine)


def _of_gpus(name: str, combine: Combine) -> Value:
    return lambda result: _combined(result.gpus, name, combine)


def _combined(
    readings: Sequence[RankTelemetry | None] | Sequence[GpuTelemetry], name: str, combine: Combine
) -> float | None:
    """The combined value, or None unless every rank or GPU has one, since a partial sum would look complete."""
    values = [getattr(reading, name, None) for reading in readings]
    known = [value for value in values if value is not None]
    return combine(known) if known and len(known) == len(values) else None


def _share_of_pass(part: str) -> Value:
    def share(result: RunResult) -> float | None:
        """The share over all ranks."""
        found = [each for rank in result.ranks if (each := rank.diagnostics.breakdown)]
        wall_s = sum(breakdown.wall_s for breakdown in found)
        return max(0.0, sum(getattr(b, f"{part}_s") for b in found) / wall_s) if wall_s else None

    return share


def _utilised(name: str, heading: str) -> Metric:
    return Metric(name, _of_run("efficiency", name), name, heading, "{:.0%}")


def _memory(name: str, source: str) -> Metric:
    return Metric(name, _of_ranks(source, max), source, is_bytes=True)


def _gpu(source: str, combine: Combine, heading: str = "", form: str = "{:.4g}", unit: str = "") -> Metric:
    is_bytes = source.endswith("_bytes")
    return Metric(
        f"gpu_{source}", _of_gpus(source, combine), source, heading, form, unit, is_bytes=is_bytes, is_of_gpus=True
    )


def _part(part: str, heading: str = "", text_heading: str = "") -> Metric:
    return Metric(f"breakdown_{part}", _share_of_pass(part), "", heading, "{:.0%}", text_heading=text_heading)


METRICS = [
    Metric("imbalance", _of_run("figures", "imbalance"), "imbalance", "imbalance", "{:.2f}×"),
    _utilised("mbu", "MBU"),
    _utilised("mfu", "MFU"),
    Metric("cpu_share", _of_ranks("cpu_share", fmean), "cpu_share"),
    _memory("max_resident_bytes", "resident_bytes"),
    _memory("max_proportional_bytes", "proportional_bytes"),
    _memory("max_reserved_bytes", "peak_reserved_bytes"),
    Metric(
        *("energy_j_per_token", _of_run("energy", "energy_j_per_token"), "energy_j_per_token"),
        *("energy per token", "{:.4g}", " J"),
    ),
    _gpu("power_w", sum, "power", "{:.0f}", " W"),
    _gpu("utilisation_percent", fmean),
    _gpu("memory_used_bytes", max),
    _gpu("sm_clock_mhz", fmean),
    _gpu("memory_clock_mhz", fmean),
    _gpu("temperature_c", max),
    _part("compute"),
    _part("waiting", "waiting"),
    _part("communication", "communication", "commu-\nnication"),
    _part("sampling"),
    _part("host"),
]
