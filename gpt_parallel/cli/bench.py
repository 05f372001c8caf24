"""`gpt-parallel bench`: the benchmark cases, in any directory."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = """Run all cases, each strategy on each number of devices: what pytest benchmarks runs in a checkout.

All arguments go to pytest: its own options, pytest-benchmark's (--benchmark-...), and those of gpt_parallel, which
begin with --gpt- here. pytest --help lists them all. A pytest.ini and a conftest.py in the working directory count,
and the report is written to reports/latest there.

Exit codes: pytest's. 0 all cases passed, 1 some failed, 2 interrupted, 4 wrong usage, 5 no case was chosen.

\b
Examples:
  gpt-parallel bench --gpt-preset smoke
  gpt-parallel bench -k 4gpu --gpt-model ./my-gpt2 --gpt-prompts prompts.jsonl
  gpt-parallel bench --benchmark-json run.json --gpt-report out
  gpt-parallel bench --collect-only -q
"""


def bench(
    pytest_args: Annotated[
        list[str] | None, typer.Argument(metavar="PYTEST_OPTIONS", show_default=False, help="Arguments for pytest.")
    ] = None,
) -> None:
    from gpt_parallel.pytest_plugin.bench import command

    os.execv(sys.executable, [sys.executable, "-m", "pytest", *command(pytest_args or [], Path.cwd())])
