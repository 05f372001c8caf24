"""Writes a report's files: CSV, text, Markdown, one self-contained HTML page, and charts."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from gpt_parallel.report.charts import chart_style, draw_charts
from gpt_parallel.report.compare import Comparison, Ratio, compare
from gpt_parallel.report.findings import key_findings
from gpt_parallel.report.load import ReportError, SavedRun
from gpt_parallel.report.metrics import to_frame
from gpt_parallel.result import write_atomically
from gpt_parallel.table import captions, text_table
from gpt_parallel.text import csv_cell, markdown, plain

FORMATS = ("md", "html", "csv", "png", "txt")
_COLUMNS: tuple[tuple[str, str, Callable[[dict[Any, Any]], str]], ...] = (
    # heading, alignment, how a row of the frame shows there
    ("case", "---", lambda row: _case_name(row)),
    ("devices", "---:", lambda row: _number(row["num_gpus"], ".0f") + _marks(row)),
    ("mesh", "---", lambda row: _text(row["mesh"])),
    ("tokens/s", "---:", lambda row: _number(row["throughput_tok_s"], ",.1f")),
    ("speed-up", "---:", lambda row: _number(row["speedup"], ".2f", "×")),
    ("efficiency", "---:", lambda row: _number(row["parallel_efficiency"], ".0%")),
    ("TTFT", "---:", lambda row: _milliseconds(row["ttft_p50_s"])),
    ("TPOT", "---:", lambda row: _milliseconds(row["tpot_p50_s"])),
    ("verified", "---", lambda row: _text(row["verified"])),
    ("latency mean", "---:", lambda row: _milliseconds(row["latency_mean_s"])),
    ("latency p50", "---:", lambda row: _milliseconds(row["latency_p50_s"])),
    ("latency p90", "---:", lambda row: _milliseconds(row["latency_p90_s"])),
    ("latency p99", "---:", lambda row: _milliseconds(row["latency_p99_s"])),
    ("round", "---:", lambda row: _milliseconds(row["round_median_s"])),
    ("utilisation", "---:", lambda row: _number(row["utilisation_percent"], ".0f", " %")),
    ("peak memory", "---:", lambda row: _number(_scaled(row["peak_memory_bytes"], 2**-20), ",.0f", " MiB")),
)
_COMPARISON_HEADINGS = ("run", "case", "tokens/s before", "after", "ratio", "95 % interval")


def write_report(
    runs: Sequence[SavedRun], directory: Path, formats: Iterable[str] = FORMATS, baseline: str | None = None
) -> list[Path]:
    """Write the asked formats into a directory, made if need be; returns the files written.

    Charts are of the last run. Raises ReportError for an unknown format or baseline, or a directory that cannot be
    written.
    """
    wanted = tuple(formats)
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ReportError(f"unknown report format {unknown[0]!r}; allowed: {', '.join(FORMATS)}")
    comparison = compare(runs, baseline)
    figures = draw_charts(runs[-1]) if {"png", "html", "md"} & set(wanted) else {}
    try:
        return _write(runs, directory, wanted, comparison, figures)
    except OSError as error:
        raise ReportError(f"report directory {directory}: cannot be written ({error.strerror})") from error


def _write(
    runs: Sequence[SavedRun],
    directory: Path,
    wanted: Sequence[str],
    comparison: Comparison | None,
    figures: dict[str, Figure],
) -> list[Path]:
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        write_atomically(directory / name, text)
        written.append(directory / name)

    frame = to_frame(runs)
    context = _context(runs, frame, comparison, figures)
    if {"png", "md"} & set(wanted):  # the Markdown shows them
        written += _write_charts(directory / "charts", figures)
    if "csv" in wanted:
        write("performance_summary.csv", _csv(frame))
    if "txt" in wanted:
        write("performance_report.txt", _render("report.txt.j2", context))
    if "md" in wanted:
        write("report.md", _render("report.md.j2", context))
    if "html" in wanted:
        images = {name: base64.b64encode(_png(figure)).decode() for name, figure in figures.items()}
        write("report.html", _render("report.html.j2", {**context, "images": images}))
    return written


def _write_charts(directory: Path, figures: dict[str, Figure]) -> list[Path]:
    paths = []
    for name, figure in figures.items():
        directory.mkdir(parents=True, exist_ok=True)
        png, svg = directory / f"{name}.png", directory / f"{name}.svg"
        png.write_bytes(_png(figure))
        with chart_style():
            figure.savefig(svg, metadata={"Date": None})
        paths += [png, svg]
    return paths


def _png(figure: Figure) -> bytes:
    output = io.BytesIO()
    with chart_style():
        figure.savefig(output, format="png", dpi=144, metadata={"Software": None})
    return output.getvalue()


def _context(
    runs: Sequence[SavedRun], frame: pd.DataFrame, comparison: Comparison | None, figures: dict[str, Figure]
) -> dict[str, Any]:
    """What all templates read; every text still has to be escaped there."""
    headings = [heading for heading, _, _ in _COLUMNS]
    records = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)]
    sections = []
    for run in runs:
        rows = [[show(row) for _, _, show in _COLUMNS] for row in records if row["run"] == run.label]
        used = rows or [[""] * len(headings)]
        sections.append(
            {
                "label": run.label,
                "origin": _origin(run),
                "captions": captions(run.summaries) if run.summaries else [],
                "rows": rows,
                "findings": key_findings(run),
                "table": text_table(headings, used),
            }
        )
    return {
        "runs": sections,
        "headings": headings,
        "aligns": [align for _, align, _ in _COLUMNS],
        "comparison": _comparison_context(comparison),
        "charts": [(name, name.replace("_", " ").capitalize().replace("gpu", "GPU")) for name in figures],
    }


def _comparison_context(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    rows = [_ratio_cells(ratio) for ratio in comparison.ratios]
    return {
        "baseline": comparison.baseline,
        "headings": _COMPARISON_HEADINGS,
        "rows": rows,
        "changes": comparison.changes,
        "table": text_table(_COMPARISON_HEADINGS, rows),
    }


def _ratio_cells(ratio: Ratio) -> list[str]:
    if ratio.problem is not None:
        return [ratio.run, ratio.case, "–", "–", "not comparable", ratio.problem]
    interval = f"{ratio.interval[0]:.3f} – {ratio.interval[1]:.3f}" if ratio.interval else "one launch"
    numbers = [_number(ratio.base, ",.4g"), _number(ratio.value, ",.4g"), _number(ratio.ratio, ".3f", "×")]
    return [ratio.run, ratio.case, *numbers, interval]


def _origin(run: SavedRun) -> str:
    commit = f"commit {run.commit[:12]}{' (with changes)' if run.dirty else ''}" if run.commit else "no commit known"
    branch = f" on {run.branch}" if run.branch else ""
    return f"{run.path.name}, {run.datetime or 'no date'}, {commit}{branch}, {run.machine}"


def _csv(frame: pd.DataFrame) -> str:
    """Raw numbers, texts made harmless for spreadsheets."""
    safe = frame.copy()
    for column in safe.columns:
        safe[column] = [csv_cell(value) if isinstance(value, str) else value for value in safe[column]]
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _render(template: str, context: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("gpt_parallel.report"),
        autoescape=lambda name: bool(name and ".html" in name),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"md": markdown, "plain": plain}
    return environment.get_template(template).render(context).rstrip() + "\n"


def _case_name(row: dict[str, Any]) -> str:
    return str(row["case"] if _is_missing(row["strategy"]) else row["strategy"])


def _marks(row: dict[str, Any]) -> str:
    return (
        "" if _is_missing(row["oversubscribed"]) else "*" * bool(row["oversubscribed"]) + "†" * bool(row["degenerate"])
    )


def _is_missing(value: Any) -> bool:
    return bool(pd.isna(value))


def _text(value: Any) -> str:
    return "–" if _is_missing(value) else str(value)


def _number(value: Any, form: str, unit: str = "") -> str:
    return "–" if _is_missing(value) else f"{value:{form}}{unit}"


def _scaled(value: Any, factor: float) -> Any:
    return value if _is_missing(value) else value * factor


def _milliseconds(seconds: Any) -> str:
    return _number(_scaled(seconds, 1000), ",.4g", " ms")
