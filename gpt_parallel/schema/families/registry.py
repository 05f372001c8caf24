"""The registry of supported model families."""

from functools import lru_cache

from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.families.gpt2 import GPT2
from gpt_parallel.schema.model import Architecture

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2,)}


def family_of(architecture: Architecture) -> Family:
    return FAMILIES[architecture.family]


@lru_cache(maxsize=16)
def tensor_shapes(architecture: Architecture) -> Shapes:
    """The stored tensors of an architecture, by name without prefix. The dictionary is cached: do not change it."""
    return family_of(architecture).tensor_shapes(architecture)
