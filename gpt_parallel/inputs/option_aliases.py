"""Aliases: option names of other tools. Some set a field of `Settings`; the others only print a note."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gpt_parallel.base.errors import SpecError
from gpt_parallel.launch.devices import cuda_devices


class Effect(NamedTuple):
    """What an alias does: the fields it sets, and a note for the user."""

    fields: Mapping[str, Any] = {}
    note: str | None = None


class Alias(NamedTuple):
    """An option that is not a field of `Settings`. Without `metavar` it is a bare flag.

    With `bare` it may be given without its value, which is then `bare`. `effect(value, given)` raises SpecError for a
    wrong value; `given` has the settings that the user gave.
    """

    name: str
    metavar: str | None
    help: str
    effect: Callable[[Any, Mapping[str, Any]], Effect]
    other_names: tuple[str, ...] = ()
    bare: str | None = None

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.other_names)


PROFILE_DIRECTORY = "reports/profile"
_HALF_PRECISION = {"bfloat16": "bfloat16", "bf16": "bfloat16", "float16": "float16", "fp16": "float16"}


def _uses_gpus(given: Mapping[str, Any]) -> bool:
    return given.get("device") != "cpu" and bool(cuda_devices())


def _mixed_precision(value: str, given: Mapping[str, Any]) -> Effect:
    if value == "auto":
        is_old = _uses_gpus(given) and any(gpu.compute_capability < (8, 0) for gpu in cuda_devices())
        return Effect({"dtype": "float16" if is_old else "bfloat16"})
    if value not in _HALF_PRECISION:
        raise SpecError(
            f"mixed-precision = {value!r}: allowed are bfloat16, float16, or no value, which takes bfloat16, and "
            "float16 on GPUs that lack it (for neither, use dtype float32)"
        )
    return Effect({"dtype": _HALF_PRECISION[value]})


def _memory_efficient_attention(_: bool, given: Mapping[str, Any]) -> Effect:
    if _uses_gpus(given):
        return Effect({"attention": "efficient"})
    return Effect({"attention": "flash"}, "memory-efficient attention on CPU is the kernel of attention 'flash'")


def _master_port(port: Any, _: Mapping[str, Any]) -> Effect:
    if not (str(port).isascii() and str(port).isdigit() and 1 <= int(port) <= 65535):
        raise SpecError(f"master-port = {port!r}: must be a port from 1 to 65535")
    return Effect(note=f"master port {port} is not used: ranks meet through a private file, so no port has to be free")


ALIASES = (
    Alias(
        "mixed-precision",
        "DTYPE",
        "alias of the number type (dtype): bfloat16 or float16; without a value, the one that the device has",
        _mixed_precision,
        bare="auto",
    ),
    Alias(
        "memory-efficient-attention",
        None,
        "alias of attention 'efficient', on CPU of 'flash'",
        _memory_efficient_attention,
        other_names=("enable-memory-efficient-attention",),
    ),
    Alias(
        "gradient-checkpointing",
        None,
        "no effect on generation; prints what saves memory",
        lambda *_: Effect(
            note="gradient checkpointing saves nothing here: generation keeps no gradients or activations; memory is "
            "saved by dtype bfloat16, tensor or pipeline parallelism, a smaller batch_size and a shorter prompt_tokens "
            "or max_length"
        ),
    ),
    Alias("master-port", "PORT", "no effect: ranks connect without a fixed port", _master_port),
    Alias("warmup-steps", "PASSES", "alias of warmup", lambda value, _: Effect({"warmup": value})),
    Alias("offline-mode", None, "alias of offline", lambda *_: Effect({"offline": True})),
    Alias(
        "enable-profiling",
        None,
        f"alias of profile {PROFILE_DIRECTORY}",
        lambda _, given: Effect({} if given.get("profile") else {"profile": PROFILE_DIRECTORY}),
    ),
    Alias(
        "save-detailed-metrics",
        None,
        "no effect: all figures are always saved",
        lambda *_: Effect(note="detailed metrics are always saved: those of every rank and every round"),
    ),
)


def apply_aliases(alias: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The given settings with the aliases' values, and notes for the user about aliases without effect.

    Raises SpecError for a wrong value, and if an option and its alias contradict each other.
    """
    fields: dict[str, Any] = {}
    notes = []
    for row in ALIASES:
        if alias.get(row.field) in (None, False):
            continue
        effect = row.effect(alias[row.field], given)
        fields |= effect.fields
        notes += [effect.note] if effect.note else []
    for field, value in fields.items():
        if given.get(field) is not None and str(given[field]) != str(value):
            raise SpecError(f"conflicting values for {field}: {given[field]!r}, and {value!r} from its alias")
    return {**given, **fields}, notes


def with_bare_values(arguments: list[str]) -> list[str]:
    """The arguments of a command, with the values of aliases that were given without one.

    `--mixed-precision --batch-size 4` becomes `--mixed-precision=auto --batch-size 4`.
    """
    bare = {f"--{alias.name}": alias.bare for alias in ALIASES if alias.bare}
    following = [*arguments[1:], "-"]
    return [
        f"{argument}={bare[name]}"
        if (name := argument.replace("_", "-")) in bare and after.startswith("-")
        else argument
        for argument, after in zip(arguments, following, strict=False)
    ]
