"""Reading fields of a `config.json`, and refusing by name what a family does not compute."""

from collections.abc import Collection, Mapping
from typing import Any

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.architecture import Architecture


def flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    """A field that is true or false; `default` where it is missing or null."""
    value = default if config.get(key) is None else config[key]
    if not isinstance(value, bool):
        raise SpecError(f"{key} = {quoted(value)} is neither true nor false")
    return value


def refuse_other_values(config: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise SpecError for a field whose value is not the only one that is computed."""
    for key, value in only.items():
        if config.get(key, value) != value:
            raise SpecError(f"{key} = {quoted(config[key])} is not supported; only {value!r} is")


def unexpected(
    architecture: Architecture,
    *,
    switches: Collection[str] = (),
    gated_mlp: bool = False,
    rotates: bool = False,
    slides: bool = False,
) -> str | None:
    """What an architecture has that its family does not; None if nothing."""
    family = architecture.family
    if unknown := sorted(set(architecture.switches) - set(switches)):
        allowed = ", ".join(sorted(switches)) or "none"
        return f"switches: {quoted(unknown[0])} is none of family {family!r}; allowed: {allowed}"
    if architecture.gated_mlp != gated_mlp:
        return f"gated_mlp: family {family!r} computes {gated_mlp} only"
    if (architecture.rope is not None) != rotates:
        return f"rope: family {family!r} {'needs one' if rotates else 'has none'}"
    if architecture.sliding_layers and not slides:
        return f"sliding_window: family {family!r} has none"
    return None
