"""`gpt-parallel report`: saved runs made readable."""

from pathlib import Path
from typing import Annotated

import typer

from gpt_parallel.base.escaping import plain
from gpt_parallel.cli.common import exit_codes, option

HELP = """Make a report from saved pytest-benchmark JSON: tables, charts, findings, comparison.

Several files are put side by side, with ratios to the first (or --baseline); charts are of the last.

\b
Examples:
  gpt-parallel report run.json
  gpt-parallel report before.json after.json --output-dir reports/change
  gpt-parallel report a.json b.json --baseline b --format md,csv
"""


def report(
    files: Annotated[list[Path], typer.Argument(help="Saved runs, oldest first.", show_default=False)],
    baseline: Annotated[str | None, option("--baseline", "Run to compare with, by file name without .json.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where the files go.")] = Path("reports/latest"),
    allow_other_host: Annotated[
        bool, option("--allow-other-host", "Compare runs of two machines that are equal but for their names.")
    ] = False,
    formats: Annotated[str, typer.Option("--format", help="Any of md,html,csv,png,txt.")] = "md,html,csv,png,txt",
) -> None:
    with exit_codes():
        from gpt_parallel.report.render import write_report
        from gpt_parallel.report.saved_run import load_runs

        runs = load_runs(files)
        written = write_report(
            runs, output_dir, [name.strip() for name in formats.split(",")], baseline, allow_other_host
        )
    for path in written:
        print(plain(path))
