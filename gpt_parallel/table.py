"""The result table of a terminal."""

import io
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gpt_parallel.result import RunResult

_OVERSUBSCRIBED, _DEGENERATE = "*", "†"


def render_table(results: Sequence[RunResult]) -> str:
    """One row per case with speed-up and efficiency over the one-device case, and what the figures hold for."""
    single = _single_device_throughput(results)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("strategy", "devices", "mesh", "tokens/s", "speed-up", "efficiency", "TTFT", "TPOT", "verified"):
        text = heading in ("strategy", "mesh", "verified")
        table.add_column(heading, justify="left" if text else "right", no_wrap=True)
    for result in results:
        table.add_row(*_row(result, single))
    output = io.StringIO()
    # Wide enough never to cut a cell; the table takes only what it needs.
    Console(file=output, width=200, color_system=None).print(table)
    rows = [line.rstrip() for line in output.getvalue().splitlines()]
    return "\n".join(["", *(row for row in rows if row), "", *_captions(results)])


def _row(result: RunResult, single: float | None) -> list[str]:
    spec, measured = result.spec, result.figures
    speedup = measured.throughput_tok_s / single if measured.throughput_tok_s and single else None
    marks = _OVERSUBSCRIBED * spec.execution.oversubscribed + _DEGENERATE * spec.degenerate
    return [
        spec.strategy,
        f"{spec.num_gpus}{marks}",
        str(spec.mesh),
        _number(measured.throughput_tok_s, ",.1f"),
        _number(speedup, ".2f", "×"),
        _number(speedup / spec.num_gpus * 100 if speedup else None, ".0f", " %"),
        milliseconds(measured.ttft_s),
        milliseconds(measured.tpot_s),
        result.verification.status,
    ]


def milliseconds(seconds: float | None) -> str:
    return _number(seconds * 1000 if seconds is not None else None, ".4g", " ms")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def _single_device_throughput(results: Sequence[RunResult]) -> float | None:
    for result in results:
        if result.spec.num_gpus == 1:
            return result.figures.throughput_tok_s
    return None


def _captions(results: Sequence[RunResult]) -> list[str]:
    result = results[0]
    spec, environment = result.spec, result.environment
    hardware = environment.device_names[0] if spec.execution.device == "cuda" else environment.cpu
    where = f"{hardware}, {environment.num_cores} cores"
    if spec.execution.device == "cpu":
        where += f"; a device is a rank pinned to {spec.execution.cores_per_rank} core(s)"
    lines = [
        f"{spec.model.name}, weights: {result.weights_origin}, {spec.execution.dtype}; {spec.workload.shape}; "
        f"{spec.workload.source}",
        f"{where}; torch {environment.torch}, {spec.execution.backend}; "
        + (f"median of {spec.execution.rounds} round(s)" if spec.execution.rounds else "verified only, not timed"),
    ]
    if spec.num_gpus > 1 and spec.execution.rounds and _single_device_throughput(results) is None:
        lines.append("speed-up needs the one-device case in the same run")
    if any(r.spec.execution.oversubscribed for r in results):
        lines.append(f"{_OVERSUBSCRIBED} oversubscribed: more ranks than devices, correct but not a measure of scaling")
    if any(r.spec.degenerate for r in results):
        lines.append(f"{_DEGENERATE} degenerate: the same mesh as an earlier strategy")
    return lines
