"""What the commands share: options without noise, one line an error, and exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from gpt_parallel.launch.local import LaunchError
from gpt_parallel.spec import SpecError
from gpt_parallel.suite import VerificationError

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=False)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Exit 2 for what the user got wrong, 1 for a failed run, 130 for Ctrl-C, each with its message."""
    try:
        yield
    except SpecError as error:
        for problem in error.problems:
            errors.print(f"error: {problem}")
        raise typer.Exit(2) from error
    except (LaunchError, VerificationError) as error:
        errors.print(f"error: {error}")
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        errors.print("interrupted; all ranks were stopped, nothing was written")
        raise typer.Exit(130) from error
