"""Reads and writes settings as YAML: strictly, because ignoring a misspelt key would falsify a measurement.

A file has the sections model, workload, execution and mesh, each with fields of `Settings`, and may name a `preset`
for the other fields. null means "unset", whatever the preset has there.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError, quoted, refuse, shorten, unknown_key
from gpt_parallel.base.untrusted_files import read_whole
from gpt_parallel.inputs.settings import Settings

MAX_BYTES = 64 << 10


# The sections in the order of Settings' fields. Each goes from its first field to the next section's.
_SECTION_STARTS = {"model": "model", "prompts": "workload", "device": "execution", "strategy": "mesh"}


# Keys of other systems' files, and where their values belong here.
_ELSEWHERE = {
    "model_name": "it is model.model here",
    "model_name_or_path": "it is model.model here",
    "model_type": "the model's own config.json has it",
    "max_position_embeddings": "the model's own config.json has it",
    "torch_dtype": "it is execution.dtype here",
    "device_map": "the strategy places the model, and execution.device is auto, cpu or cuda",
    "max_new_tokens": "it is workload.max_length here",
}


def sections() -> dict[str, list[str]]:
    """The fields of each section of a configuration file, in their order."""
    grouped: dict[str, list[str]] = {}
    section = ""
    for field in Settings.model_fields:
        section = _SECTION_STARTS.get(field, section)
        grouped.setdefault(section, []).append(field)
    return grouped


class ConfigFile(NamedTuple):
    """A file's settings by field, and the preset that they override."""

    values: dict[str, Any]
    preset: str | None = None


def read_config(path: Path) -> ConfigFile:
    """Read a configuration file. Raises SpecError with the file's name and all its mistakes."""
    document = _parse(path)
    if not isinstance(document, dict):
        raise SpecError(f"{path}: must have sections such as 'model:' (allowed: {', '.join(sections())})")
    preset = document.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise SpecError(f"{path}: preset = {quoted(preset)}: must be a preset's name")
    values, problems = _collect(document)
    refuse([f"{path}: {problem}" for problem in problems])
    try:
        Settings.model_validate(values)
    except ValidationError as error:
        raise SpecError.from_validation(error, prefix=f"{path}: ") from error
    return ConfigFile(values, preset)


def to_yaml(settings: Settings) -> str:
    """Write all settings in their sections, as a file from which the same settings are read."""
    values = settings.model_dump(mode="json")
    document = {section: {field: values[field] for field in fields} for section, fields in sections().items()}
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def _parse(path: Path) -> Any:
    try:
        return yaml.load(read_whole(path, MAX_BYTES, "configuration file"), _Loader)  # ours is a SafeLoader
    except SpecError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SpecError(f"{path}{line}: not valid YAML ({shorten(str(error.problem))})") from error
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        # PyYAML's constructors raise all of these, for example for `!!int ""` or a date that matches nothing.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SpecError(f"{path}: not valid YAML ({shorten(reason)})") from error


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # the library has no types
    """Refuses duplicate keys, of which YAML's own loader silently takes the last, and all aliases.

    A few lines of aliases may expand to a document of any size.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(problem="aliases are not allowed", problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"duplicate key {quoted(key.value)}", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def _collect(document: dict[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of all sections, and the problems with their names and types."""
    known = sections()
    values: dict[str, Any] = {}
    problems = []
    for section, fields in document.items():
        if section not in known:
            problems.append(_unknown(_name(section), ["preset", *known], "", known))
        elif fields is not None and not isinstance(fields, dict):
            problems.append(f"{section}: must hold fields such as '{known[section][0]}: …', not {quoted(fields)}")
        else:
            for field, value in (fields or {}).items():
                problem = _problem(section, _name(field), value, known)
                problems += [problem] if problem else []
                values[_name(field)] = value
    return values, problems


def _name(key: Any) -> str:
    return shorten(key) if isinstance(key, str) else quoted(key)


def _problem(section: str, field: str, value: Any, known: dict[str, list[str]]) -> str | None:
    if field not in known[section]:
        return _unknown(field, known[section], f"{section}.", known)
    if isinstance(value, bool) and Settings.model_fields[field].annotation is not bool:
        return f"{section}.{field} = {str(value).lower()}: this is not a yes-or-no setting"
    return None


def _unknown(name: str, allowed: list[str], prefix: str, known: dict[str, list[str]]) -> str:
    """The message for an unknown name, with the one that was probably meant."""
    for section, fields in known.items():
        if name in fields:
            return f"{prefix}{name}: unknown key here; {name!r} belongs in section {section!r}"
    if name in _ELSEWHERE:
        return f"{prefix}{name}: unknown key; {_ELSEWHERE[name]}"
    everywhere = {field: f"{section}.{field}" for section, fields in known.items() for field in fields}
    nearest = get_close_matches(name, everywhere, n=1)
    if nearest and not get_close_matches(name, allowed, n=1):
        return f"{prefix}{name}: unknown key; did you mean {everywhere[nearest[0]]!r}?"
    return f"{prefix}{name}: {unknown_key(name, tuple(allowed))}"
