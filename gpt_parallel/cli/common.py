"""What the commands share: options without noise, one line an error, and exit codes."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

from gpt_parallel.launch.devices import default_preset
from gpt_parallel.launch.local import LaunchError
from gpt_parallel.settings import PRESETS, Option, make_settings, options
from gpt_parallel.spec import SpecError
from gpt_parallel.suite import VerificationError

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=False)


def takes_settings(command: Callable[..., None], without: Sequence[str] = ()) -> Callable[..., None]:
    """Give a command `--preset` and an option per field of Settings; it is called with the `settings` they make."""
    offered = [option for option in options() if option.field not in without]

    @functools.wraps(command)
    def with_settings(preset: str | None, **arguments: Any) -> None:
        given = {o.field: arguments.pop(o.field) for o in offered}
        given |= {o.field: o.constant for o in offered if o.constant is not None and given[o.field]}
        with exit_codes():
            command(settings=make_settings(preset or default_preset(), given), **arguments)

    presets = typer.Option(
        "--preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default: xl with CUDA GPUs, else cpu"
    )
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    parameters = [
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
        _parameter("preset", Annotated[str | None, presets]),
        *(_parameter(o.field, _annotation(o)) for o in offered),
    ]
    with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_settings


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _annotation(option: Option) -> Any:
    flag = f"--{option.name}"
    if option.constant is None:
        return Annotated[str | None, typer.Option(flag, metavar=option.metavar, help=option.help)]
    return Annotated[bool | None, typer.Option(flag, help=option.help)]


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
