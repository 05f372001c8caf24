"""`gpt-parallel report`: makes a readable report of saved runs."""

from pathlib import Path
from typing import Annotated

import typer

from gpt_parallel.base.escaping import plain
from gpt_parallel.cli.common import exit_codes, option

HELP = """Make a report from saved runs: tables, charts, findings, comparison.

A run is a file of --benchmark-json, a session's report directory, the .benchmarks directory (its newest run), a
result.json of gpt-parallel run or a directory of several, which are one run if they are of different cases.

Several runs are compared side by side, with ratios to the first (or to --baseline); charts show the last one.

\b
Examples:
  gpt-parallel report run.json
  gpt-parallel report before.json after.json --output-dir reports/change
  gpt-parallel report a.json b.json --baseline b --format md,csv
  gpt-parallel report .benchmarks
  gpt-parallel report out/pure_data_parallel-2gpu/result.json out/tensor_data_hybrid-2gpu/result.json
"""


def report(
    files: Annotated[list[Path], typer.Argument(help="Saved runs, oldest first.", show_default=False)],
    baseline: Annotated[
        str | None, option("--baseline", "Run to compare with, by its label: the file's name without .json.")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="Directory for the files.")] = Path("reports/latest"),
    allow_other_host: Annotated[
        bool, option("--allow-other-host", "Compare runs of two machines that differ only in their names.")
    ] = False,
    formats: Annotated[
        str, typer.Option("--format", help="Comma-separated formats: any of md,html,csv,png,txt.")
    ] = "md,html,csv,png,txt",
) -> None:
    with exit_codes():
        from gpt_parallel.bench.saved_files import load_runs
        from gpt_parallel.report.render import write_report

        runs = load_runs(files)
        written = write_report(
            runs, output_dir, [name.strip() for name in formats.split(",")], baseline, allow_other_host
        )
    for path in written:
        print(plain(path))
