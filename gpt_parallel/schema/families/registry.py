"""The registry of supported model families."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.families.gpt2 import GPT2
from gpt_parallel.schema.families.gpt_neox import GPT_NEOX
from gpt_parallel.schema.families.llama import LLAMA, MISTRAL, QWEN2, QWEN3

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3)}


def family_of(architecture: Architecture) -> Family:
    return FAMILIES[architecture.family]


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture in a `config.json`; SpecError or ValidationError if it is malformed or of no known family."""
    kind = config.get("model_type")
    if kind not in list(FAMILIES):
        raise SpecError(f"model_type is {quoted(kind)}; only {', '.join(FAMILIES)} models can be run")
    if config.get("quantization_config"):
        raise SpecError("quantization_config: quantised weights are not supported; use the original model's")
    return FAMILIES[kind].from_config(config)


def architecture_problem(architecture: Architecture) -> str | None:
    """Why no family of models has this architecture; None if one has."""
    family = FAMILIES.get(architecture.family)
    if family is None:
        return f"family: {quoted(architecture.family)} is not known; allowed: {', '.join(FAMILIES)}"
    return family.problem(architecture)


@lru_cache(maxsize=16)
def tensor_shapes(architecture: Architecture) -> Shapes:
    """The stored tensors of an architecture, by name without prefix. The dictionary is cached: do not change it."""
    return family_of(architecture).tensor_shapes(architecture)
