"""The `--gpt-…` options of pytest, their ini values and the configuration file, turned into `Settings`."""

from argparse import SUPPRESS
from functools import partial
from typing import Any, NamedTuple

import pytest

from gpt_parallel.inputs.option_aliases import ALIASES, apply_aliases
from gpt_parallel.inputs.option_groups import CONFIGURATION, OTHER_TOOLS
from gpt_parallel.inputs.settings import PRESETS, Settings, make_settings, options


class SessionChoice(NamedTuple):
    """The settings of a session, and notes about options without effect."""

    settings: Settings
    notes: list[str]


def add_options(parser: pytest.Parser) -> None:
    add = partial(_add_option, _group(parser, CONFIGURATION))
    add("--gpt-preset", metavar="NAME", help=f"{', '.join(PRESETS)}; default: xl with CUDA GPUs, else cpu")
    parser.addini("gpt_preset", "default of --gpt-preset")
    add("--gpt-config", metavar="FILE", help="YAML file of settings; overrides ini values, overridden by options")
    add("--gpt-print-config", action="store_true", help="print the settings as a YAML file and exit")
    add("--gpt-report", metavar="DIR", help="directory for the report; default: reports/latest")
    add("--gpt-no-report", action="store_true", help="write neither report nor journal")
    add("--gpt-resume", action="store_true", help="launch only cases that the report directory's journal does not have")
    add(
        "--gpt-inject-fault",
        metavar="PHASE:RANK:ACTION",
        help="make a rank of each case fail; for tests of gpt_parallel itself, whose figures do not count",
    )
    for option in options():
        flag, field, text = f"--gpt-{option.name}", f"gpt_{option.field}", option.help.replace("%", "%%")
        add = partial(_add_option, _group(parser, option.group))
        if option.constant is None:
            add(flag, dest=field, metavar=option.metavar, help=text)
        else:
            add(flag, dest=field, action="store_const", const=str(option.constant), help=text)
        parser.addini(field, f"default of {flag}: {option.help}" if option.constant is not False else f"false: {flag}")
    add = partial(_add_option, _group(parser, OTHER_TOOLS))
    for alias in ALIASES:
        kind: dict[str, Any] = {"metavar": alias.metavar} if alias.metavar else {"action": "store_true"}
        if alias.bare:
            kind |= {"nargs": "?", "const": alias.bare}
        flags = [f"--gpt-{name}" for name in alias.names]
        add(*flags, dest=f"gpt_{alias.field}", help=alias.help, **kind)


def _group(parser: pytest.Parser, name: str) -> Any:
    return parser.getgroup(f"gpt {name}", f"distributed GPT generation (gpt_parallel): {name}")


def _add_option(group: Any, *flags: str, dest: str | None = None, **attributes: Any) -> None:
    """Add an option, and without a line in the help the same with underscores: --gpt-num_gpus, --gpt_num_gpus."""
    dest = dest or flags[0].lstrip("-").replace("-", "_")
    group.addoption(*flags, dest=dest, **attributes)
    names = [flag.removeprefix("--gpt-").replace("-", "_") for flag in flags]
    spellings = dict.fromkeys(f"--gpt{mark}{name}" for name in names for mark in "-_")
    group.addoption(*(name for name in spellings if name not in flags), dest=dest, **attributes | {"help": SUPPRESS})


def has_own_options(config: pytest.Config) -> bool:
    """Whether the user gave any option or ini value of this plugin."""
    names = ("preset", "config", *Settings.model_fields)
    return any(config.getoption(f"gpt_{name}") for name in names) or bool(_ini_values(config) or _aliases(config))


def refuse_contradictions(config: pytest.Config) -> None:
    """Raise UsageError for options of this plugin that contradict others."""
    for other in ("--gpt-no-report", "--benchmark-disable"):
        if config.getoption("gpt_resume") and config.getoption(other[2:].replace("-", "_"), False):
            raise pytest.UsageError(
                f"gpt_parallel: --gpt-resume continues a journal, but {other} keeps none; leave one of them out"
            )


def choose_settings(config: pytest.Config) -> SessionChoice:
    """Combine options, which override the file, which overrides ini values, which override the preset.

    Raises SpecError.
    """
    from gpt_parallel.inputs.execution import default_preset
    from gpt_parallel.inputs.yaml_file import ConfigFile, read_config

    chosen = {name: config.getoption(f"gpt_{name}") or None for name in Settings.model_fields}
    chosen["launcher"] = config.getoption("gpt_launcher")  # an empty text is an error, not a missing option
    given, notes = apply_aliases(_aliases(config), chosen)
    path = config.getoption("gpt_config")
    file = read_config(config.invocation_params.dir / path) if path else ConfigFile({})
    ini = _ini_values(config)
    ini_preset = ini.pop("preset", None)
    preset = config.getoption("gpt_preset") or file.preset or ini_preset or default_preset()
    return SessionChoice(make_settings(preset, given, {**ini, **file.values}), notes)


def _ini_values(config: pytest.Config) -> dict[str, str]:
    return {name: value for name in ("preset", *Settings.model_fields) if (value := config.getini(f"gpt_{name}"))}


def _aliases(config: pytest.Config) -> dict[str, Any]:
    return {alias.field: value for alias in ALIASES if (value := config.getoption(f"gpt_{alias.field}"))}
