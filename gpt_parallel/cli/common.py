"""Shared parts of the commands: their options, error lines and exit codes."""

import functools
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gpt_parallel.base.errors import SpecError, see, why_no_directory
from gpt_parallel.base.escaping import plain_lines
from gpt_parallel.base.redaction import redact
from gpt_parallel.base.signals import ignore_interrupts_until_exit
from gpt_parallel.bench.verifier import VerificationError
from gpt_parallel.inputs.execution import default_preset
from gpt_parallel.inputs.option_aliases import ALIASES, Alias, apply_aliases
from gpt_parallel.inputs.option_groups import CONFIGURATION, OTHER_TOOLS
from gpt_parallel.inputs.settings import PRESETS, Option, make_settings, options
from gpt_parallel.inputs.yaml_file import ConfigFile, read_config, to_yaml
from gpt_parallel.launch.failure import LaunchError

errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


def option(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=False)


InjectFault = Annotated[str | None, typer.Option("--inject-fault", metavar="PHASE:RANK:ACTION", hidden=True)]


def takes_settings(command: Callable[..., None], without: Sequence[str] = ()) -> Callable[..., None]:
    """Give a command `--preset`, `--config` and one option per field of Settings.

    The command is called with the resulting `settings`. The command line overrides the file, the file the preset.
    """
    offered = [option for option in options() if option.field not in without]

    @functools.wraps(command)
    def with_settings(
        preset: str | None,
        config: Path | None,
        print_config: bool,
        verbose: bool,
        debug: bool,
        log_file: Path | None,
        **arguments: Any,
    ) -> None:
        given = {o.field: arguments.pop(o.field) for o in offered}
        given |= {o.field: o.constant for o in offered if o.constant is not None and given[o.field]}
        aliases = {alias.field: arguments.pop(alias.field) for alias in ALIASES}
        with exit_codes(), _logging(verbose, debug, log_file):
            given, notes = apply_aliases(aliases, given)
            file = read_config(config) if config else ConfigFile({})
            settings = make_settings(preset or file.preset or default_preset(), given, file.values)
            for note in notes:
                errors.print(f"note: {plain_lines(note)}")
            if print_config:
                print(to_yaml(settings), end="")
                return
            command(settings=settings, **arguments)

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
    parameters = [
        *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
        *_shared_parameters(),
        *(_parameter(o.field, _annotation(o)) for o in offered),
        *(_parameter(alias.field, _alias_annotation(alias)) for alias in ALIASES),
    ]
    with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_settings


def _shared_parameters() -> list[inspect.Parameter]:
    def shared(name: str, kind: Any, text: str, metavar: str | None = None) -> inspect.Parameter:
        flag = f"--{name.replace('_', '-')}"
        shown = typer.Option(flag, metavar=metavar, help=text, rich_help_panel=CONFIGURATION)
        return _parameter(name, Annotated[kind, shown], default=False if kind is bool else None)

    return [
        shared("preset", str | None, f"{', '.join(PRESETS)}; default: xl with CUDA GPUs, else cpu", "NAME"),
        shared("config", Path | None, "YAML file of settings; overridden by options", "FILE"),
        shared("print_config", bool, "print the settings as a YAML file and exit"),
        shared("verbose", bool, "log every rank's phases"),
        shared("debug", bool, "log phases and the full spec of each run"),
        shared("log_file", Path | None, "write the debug log to a file", "FILE"),
    ]


@contextmanager
def _logging(verbose: bool, debug: bool, log_file: Path | None) -> Iterator[None]:
    """During a command send the package's log to the terminal, as the options say, and all of it to the file.

    Under pytest its own logging options do this.
    """
    logger = logging.getLogger("gpt_parallel")
    logger.setLevel(logging.DEBUG)
    handlers: list[logging.Handler] = []
    if verbose or debug:
        handlers.append(logging.StreamHandler())
        handlers[-1].setLevel(logging.DEBUG if debug else logging.INFO)
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            raise SpecError(f"log file {log_file}: cannot be written ({error.strerror})") from error
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def is_logging_to_terminal() -> bool:
    return any(type(handler) is logging.StreamHandler for handler in logging.getLogger("gpt_parallel").handlers)


def _alias_annotation(alias: Alias) -> Any:
    flags = [f"--{name}" for name in alias.names]
    shown: dict[str, Any] = {"help": alias.help, "rich_help_panel": OTHER_TOOLS}
    if alias.metavar is not None:
        return Annotated[str | None, typer.Option(*flags, metavar=alias.metavar, **shown)]
    return Annotated[bool | None, typer.Option(*flags, **shown)]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option) -> Any:
    shown: dict[str, Any] = {"help": option.help, "rich_help_panel": option.group}
    if option.constant is None:
        return Annotated[str | None, typer.Option(f"--{option.name}", metavar=option.metavar, **shown)]
    return Annotated[bool | None, typer.Option(f"--{option.name}", **shown)]


def make_writable(directory: Path) -> None:
    """Create an output directory; raise SpecError if it cannot be written, before hours of work go into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise SpecError(
            f"output directory {directory}: cannot be written ({why_no_directory(error)}){see('permissions')}"
        ) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Exit 1 with a message if a result cannot be written."""
    try:
        yield
    except OSError as error:
        print_error(f"{path}: cannot be written ({error.strerror})")
        raise typer.Exit(1) from error


@contextmanager
def exit_codes() -> Iterator[None]:
    """Exit 2 for a user mistake, 1 for a failed run, 130 for Ctrl-C, each with its message."""
    try:
        yield
    except SpecError as error:
        for problem in error.problems:
            print_error(problem)
        raise typer.Exit(2) from error
    except (LaunchError, VerificationError) as error:
        print_error(error)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        ignore_interrupts_until_exit()
        errors.print("interrupted; all ranks were stopped, and no file is half-written")
        raise typer.Exit(130) from error


@contextmanager
def verdict_codes() -> Iterator[None]:
    """Exit codes of a command that judges: any other error exits 2, because a traceback's 1 would mean "regression"."""
    try:
        with exit_codes():
            yield
    except typer.Exit:
        raise
    except Exception as error:
        print_error(describe(error))
        raise typer.Exit(2) from error


def print_error(problem: object) -> None:
    errors.print(f"error: {plain_lines(redact(str(problem)))}")


def describe(error: Exception) -> str:
    """One line about an error, with its type if it is unexpected."""
    if isinstance(error, SpecError):
        return "; ".join(error.problems)
    return f"unexpected {type(error).__name__}: {error}".replace("\n", " ")
