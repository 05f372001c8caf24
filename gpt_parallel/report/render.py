"""Writes a report's files: CSV, text, Markdown, one self-contained HTML page, and charts."""

import base64
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from gpt_parallel.base.atomic_files import StagedFiles
from gpt_parallel.base.errors import why_no_directory
from gpt_parallel.base.escaping import csv_cell, markdown, plain
from gpt_parallel.report.charts.chart_set import NARROW, ChartSet, draw_charts, file_names, save
from gpt_parallel.report.columns import (
    COMPARISON,
    COMPARISON_NOTE,
    Cells,
    comparison_cells,
    narrow_comparison,
    results_columns,
    text_tables,
)
from gpt_parallel.report.compare.side_by_side import Comparison, compare
from gpt_parallel.report.findings import key_findings
from gpt_parallel.report.frame import to_frame
from gpt_parallel.report.saved_run import ReportError, SavedRun
from gpt_parallel.report.tables import captions

FORMATS = ("md", "html", "csv", "png", "txt")


def write_report(
    runs: Sequence[SavedRun],
    directory: Path,
    formats: Iterable[str] = FORMATS,
    baseline: str | None = None,
    allow_other_host: bool = False,
    files: StagedFiles | None = None,
) -> list[Path]:
    """Write the given formats into a directory, created if missing. Returns the files written, or staged in `files`.

    Charts are of the last run. Raises ReportError for an unknown format or baseline, or a directory that cannot be
    written.
    """
    wanted = tuple(formats)
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise ReportError(f"unknown report format {unknown[0]!r}; allowed: {', '.join(FORMATS)}")
    comparison = compare(runs, baseline, allow_other_host)
    try:
        return _write(runs, directory, wanted, comparison, files)
    except OSError as error:
        raise ReportError(f"report directory {directory}: cannot be written ({why_no_directory(error)})") from error


def _write(
    runs: Sequence[SavedRun],
    directory: Path,
    wanted: Sequence[str],
    comparison: Comparison | None,
    others: StagedFiles | None,
) -> list[Path]:
    frame = to_frame(runs)
    sets = draw_charts(runs[-1]) if {"png", "html", "md"} & set(wanted) else []
    context = _context(runs, frame, comparison, sets)
    with StagedFiles() if others is None else nullcontext(others) as files:
        if {"png", "md"} & set(wanted):  # the Markdown shows them
            _write_charts(directory / "charts", sets, files)
        if "csv" in wanted:
            files.write(directory / "performance_summary.csv", _csv(frame))
        if "txt" in wanted:
            files.write(directory / "performance_report.txt", _render("report.txt.j2", context))
        if "md" in wanted:
            files.write(directory / "report.md", _render("report.md.j2", context))
        if "html" in wanted:
            images = {"wide": _images(sets), "narrow": _images(draw_charts(runs[-1], NARROW))}
            files.write(directory / "report.html", _render("report.html.j2", {**context, "images": images}))
    return files.paths


def _write_charts(directory: Path, sets: Sequence[ChartSet], files: StagedFiles) -> None:
    """Write the charts, and remove those of an earlier report."""
    for name in file_names():
        files.remove(directory / name)
    for chart_set in sets:
        for chart in chart_set.charts:
            for kind in ("png", "svg"):
                files.write(directory / f"{chart.name}.{kind}", save(chart, kind, chart_set.captions))


def _images(sets: Sequence[ChartSet]) -> dict[str, str]:
    """The charts as base-64 PNGs; the page has their captions as text."""
    charts = [chart for chart_set in sets for chart in chart_set.charts]
    return {chart.name: base64.b64encode(save(chart, "png")).decode() for chart in charts}


def _context(
    runs: Sequence[SavedRun], frame: pd.DataFrame, comparison: Comparison | None, sets: Sequence[ChartSet]
) -> dict[str, Any]:
    """The variables of all templates, which escape every text."""
    columns = results_columns(frame)
    records: list[Cells] = [
        dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False, name=None)
    ]
    sections = []
    for run in runs:
        own = [record for record in records if record["run"] == run.label]
        sections.append(
            {
                "label": run.label,
                "origin": _origin(run),
                "incompleteness": run.incompleteness,
                "captions": captions(run.summaries) if run.summaries else [],
                "rows": [[column.cell(record) for column in columns] for record in own],
                "findings": key_findings(run),
                "tables": text_tables(columns, own),
            }
        )
    return {
        "comparison_note": COMPARISON_NOTE,
        "runs": sections,
        "headings": [column.heading for column in columns],
        "aligns": ["---" if column.is_text else "---:" for column in columns],
        "comparison": _comparison_context(comparison),
        "chart_sets": [chart_set for chart_set in sets if chart_set.charts],
    }


def _comparison_context(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    rows = [comparison_cells(row, comparison.baseline) for row in comparison.rows]
    headings = [heading for heading, _ in COMPARISON]
    return {
        "baseline": comparison.baseline,
        "headings": headings,
        "aligns": ["---" if is_text else "---:" for _, is_text in COMPARISON],
        "rows": rows,
        "changes": comparison.changes,
        "table": narrow_comparison(rows),
    }


def _origin(run: SavedRun) -> str:
    commit = f"commit {run.commit[:12]}{' (with changes)' if run.dirty else ''}" if run.commit else "no commit known"
    branch = f" on {run.branch}" if run.branch else ""
    return f"{run.path.name}, {run.datetime or 'no date'}, {commit}{branch}, {run.machine}"


def _csv(frame: pd.DataFrame) -> str:
    """The CSV: raw numbers, and texts escaped for spreadsheets."""
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
    environment.filters |= {"md": markdown, "plain": plain, "breakable": _breakable}
    return environment.get_template(template).render(context).rstrip() + "\n"


def _breakable(value: object) -> Markup:
    """A name that may break after an underscore."""
    return escape(plain(value)).replace("_", Markup("_<wbr>"))
