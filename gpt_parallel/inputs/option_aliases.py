"""Aliases: option names of other tools. Some set a field of `Settings`; the others only print a note."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt_parallel.base.errors import SpecError


class Alias(NamedTuple):
    """An option that is not a field of `Settings`; without `metavar` it is a bare flag."""

    name: str
    metavar: str | None
    help: str

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")


ALIASES = (
    Alias("mixed-precision", "DTYPE", "alias of the number type (dtype): bfloat16 or float16"),
    Alias("memory-efficient-attention", None, "alias of attention 'efficient'"),
    Alias("gradient-checkpointing", None, "no effect on generation; prints what saves memory"),
    Alias("master-port", "PORT", "no effect: ranks connect without a fixed port"),
)

_NO_GRADIENTS = (
    "gradient checkpointing saves nothing here: generation keeps no gradients or activations; memory is saved by dtype "
    "bfloat16, tensor or pipeline parallelism, a smaller batch_size and a shorter prompt_tokens or max_length"
)
_NO_PORT = "master port {port} is not used: ranks meet through a private file, so no port has to be free"


def apply_aliases(alias: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The given settings with the aliases' values, and notes for the user about aliases without effect.

    Raises SpecError for a wrong value, and if an option and its alias contradict each other.
    """
    fields: dict[str, Any] = {}
    notes = []
    if (dtype := alias.get("mixed_precision")) is not None:
        if dtype not in ("bfloat16", "float16"):
            raise SpecError(
                f"mixed-precision = {dtype!r}: allowed are bfloat16, float16 (for neither, use dtype float32)"
            )
        fields["dtype"] = dtype
    if alias.get("memory_efficient_attention"):
        fields["attention"] = "efficient"
    if alias.get("gradient_checkpointing"):
        notes.append(_NO_GRADIENTS)
    if (port := alias.get("master_port")) is not None:
        if not (str(port).isascii() and str(port).isdigit() and 1 <= int(port) <= 65535):
            raise SpecError(f"master-port = {port!r}: must be a port from 1 to 65535")
        notes.append(_NO_PORT.format(port=port))
    for field, value in fields.items():
        if given.get(field) not in (None, value):
            raise SpecError(f"conflicting values for {field}: {given[field]!r}, and {value!r} from its alias")
    return {**given, **fields}, notes
