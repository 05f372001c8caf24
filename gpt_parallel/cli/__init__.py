"""The `gpt-parallel` command."""

import sys
from typing import Annotated

import typer

from gpt_parallel.base.signals import ignore_interrupts_until_exit, install_interrupt_handler
from gpt_parallel.base.terminal import use_stand_ins
from gpt_parallel.cli import ab, bench, data, gate, report, run, worker
from gpt_parallel.cli import help as help_command
from gpt_parallel.cli.common import takes_settings
from gpt_parallel.cli.doctor import command as doctor_command
from gpt_parallel.inputs.option_aliases import with_bare_values
from gpt_parallel.version import __version__


def _with_hyphens(name: str) -> str:
    return name.replace("_", "-")


app = typer.Typer(
    help="Verified, timed distributed GPT-2 generation.",
    no_args_is_help=True,
    context_settings={"token_normalize_func": _with_hyphens},  # --num_gpus is --num-gpus, in every command
)
app.command("run", help=run.HELP)(takes_settings(run.run, without=("launches", "batch_sizes")))
app.command("bench", help=bench.HELP, context_settings={"ignore_unknown_options": True})(bench.bench)
app.command("doctor", help=doctor_command.HELP)(takes_settings(doctor_command.doctor))
app.command("report", help=report.HELP)(report.report)
app.command("ab", help=ab.HELP)(ab.ab)
app.command("gate", help=gate.HELP)(gate.gate)
app.command("join", help=worker.JOIN_HELP)(worker.join)
app.command("worker", help=worker.WORKER_HELP, hidden=True)(worker.worker)
app.add_typer(data.app, name="data")
app.command("help", help=help_command.HELP)(help_command.show_help)


def _print_version(is_requested: bool) -> None:
    if is_requested:
        print(f"gpt-parallel {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the console script. A second Ctrl-C is ignored while the process ends."""
    install_interrupt_handler()
    use_stand_ins()
    try:
        app(with_bare_values(sys.argv[1:]))
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:  # before the command began, or after it ended
        sys.exit(130)
    finally:
        ignore_interrupts_until_exit()
