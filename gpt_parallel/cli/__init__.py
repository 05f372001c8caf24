"""The `gpt-parallel` command."""

import signal
import sys
from typing import Annotated

import typer

from gpt_parallel import __version__
from gpt_parallel.cli import ab, gate, report, run
from gpt_parallel.cli.common import takes_settings

app = typer.Typer(help="Verified, timed distributed GPT-2 generation.", no_args_is_help=True, add_completion=False)
app.command("run", help=run.HELP)(takes_settings(run.run, without=("launches",)))
app.command("report", help=report.HELP)(report.report)
app.command("ab", help=ab.HELP)(ab.ab)
app.command("gate", help=gate.HELP)(gate.gate)


def _version(asked: bool) -> None:
    if asked:
        print(f"gpt-parallel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _interrupt)  # what Ctrl-C cleans up, a CI system's cancellation does too
    try:
        app()
    except BrokenPipeError:
        sys.exit(1)
