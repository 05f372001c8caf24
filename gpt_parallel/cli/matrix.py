"""`gpt-parallel matrix`: many cases without pytest, safe to interrupt."""

from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.signals import ignore_interrupts_until_exit
from gpt_parallel.bench.journal import FILE_NAME, Finished, Journal, JournalError, make_header
from gpt_parallel.bench.matrix import Cell, Matrix, make_cells, make_record
from gpt_parallel.bench.session_record import SessionRecord
from gpt_parallel.cli.common import InjectFault, errors, make_writable, option, print_error
from gpt_parallel.cli.matrix_progress import MatrixProgress, describe
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch import fork_server
from gpt_parallel.report.saved_run import ReportError
from gpt_parallel.report.tables import render_breakdown, render_table
from gpt_parallel.schema.fault import FaultSpec

HELP = """Run strategies × device counts × batch sizes: verified, timed, one after the other, without pytest.

What is finished is kept in OUTPUT_DIR/matrix.jsonl, cell by cell: after Ctrl-C or a crash the same command with
--resume goes on where it stopped. A cell that fails, runs out of memory or cannot be run here is marked with its reason
and the others go on. At the end stand the same table and report as after pytest benchmarks.

Exit codes: 0 all that could run is verified, 1 a cell failed, 2 wrong usage, 130 interrupted.

\b
Examples:
  gpt-parallel matrix --preset smoke
  gpt-parallel matrix --num-gpus 1,2,4 --batch-sizes 1,4,16
  gpt-parallel matrix --strategy pure_data_parallel,tensor_data_hybrid --num-gpus 2 --launches 3
  gpt-parallel matrix --config configs/smoke.yaml --output-dir reports/night --resume
"""


def matrix(
    batch_sizes: Annotated[
        str | None, option("--batch-sizes", "Several batch sizes, e.g. 1,4,16. Default: --batch-size.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Where journal and report go.")] = Path("reports/matrix"),
    resume: Annotated[bool, option("--resume", "Go on with the journal in the output directory.")] = False,
    retry_failed: Annotated[bool, option("--retry-failed", "With --resume: run failed cells again.")] = False,
    force: Annotated[bool, option("--force", "Start over where an interrupted matrix has left a journal.")] = False,
    inject_fault: InjectFault = None,
    *,
    settings: Settings,
) -> None:
    cells = make_cells(settings, _parse_sizes(batch_sizes) if batch_sizes else (settings.batch_size,))
    if resume and force:
        raise SpecError("give either --resume or --force, not both")
    if retry_failed and not resume:
        raise SpecError("--retry-failed needs --resume")
    fault = FaultSpec.parse(inject_fault) if inject_fault else None
    header = make_header("matrix", settings)
    make_writable(output_dir)
    with Journal(output_dir / FILE_NAME, header, resume=resume, force=force) as journal:
        if retry_failed:
            journal.forget("failed", "oom")
        ended_by, code = _run(settings, cells, journal, fault)
        failed = any(finished.outcome in ("failed", "oom") for finished in _finished(cells, journal))
    _print(cells, journal, make_record(cells, journal, ended_by), output_dir)
    if code or failed:
        raise typer.Exit(code or 1)


def _run(settings: Settings, cells: list[Cell], journal: Journal, fault: FaultSpec | None) -> tuple[str, int]:
    """Why it ended early, and the exit code of that; nothing and 0 where it did not."""
    num_kept = len(_finished(cells, journal))
    if num_kept:
        errors.print(f"{num_kept} of {len(cells)} cells are in {journal.path} already")
    try:
        with MatrixProgress(errors, len(cells), len(cells) - num_kept) as progress:
            this = Matrix(settings, cells, progress, fault)
            if num_kept < len(cells):
                fork_server.warm_up()
                this.check()
            this.run(journal)
    except JournalError as error:
        print_error(f"{error}; what it has is kept, and the same command with --resume goes on")
        return str(error), 1
    except KeyboardInterrupt:
        ignore_interrupts_until_exit()
        errors.print(
            f"interrupted; all ranks were stopped. {len(_finished(cells, journal))} of {len(cells)} cells are kept in "
            f"{journal.path}; the same command with --resume goes on"
        )
        return "interrupted", 130
    return "", 0


def _finished(cells: list[Cell], journal: Journal) -> list[Finished]:
    return [journal.finished[cell.name] for cell in cells if cell.name in journal.finished]


def _print(cells: list[Cell], journal: Journal, record: SessionRecord, output_dir: Path) -> None:
    """A table for each batch size, for speed-ups hold within one; then what has no figures; then the report."""
    for _, group in groupby(cells, key=lambda cell: cell.batch_size):
        summaries = [found.summary for found in _finished(list(group), journal) if found.summary is not None]
        if summaries:
            print(render_table(summaries) + render_breakdown(summaries))
    for finished in _finished(cells, journal):
        if finished.summary is None:
            print(f"{finished.cell}: {describe(finished)}")
    if record.incompleteness:
        print(record.incompleteness)
    if not record.is_timed:
        return
    try:
        record.write_report(output_dir)
    except (OSError, ReportError) as error:
        print_error(f"the report cannot be written to {output_dir} ({error}); --resume writes it from the journal")
        raise typer.Exit(1) from error
    print(f"report: {output_dir / 'report.html'} (also .md, .txt, .csv and charts)")


def _parse_sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= 1_000_000 for part in parts):
        raise SpecError(f"--batch-sizes {text!r}: must be sizes with commas between them, such as 1,4,16")
    return tuple(dict.fromkeys(map(int, parts)))
