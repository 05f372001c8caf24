"""The description of a model family as data, shared by launcher and ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_parallel.schema.model import Architecture

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """A model family without torch; the code that computes it is in `engine/model`.

    `model_types`: what `config.json` calls it.
    `from_config`: an architecture from a `config.json`; SpecError or ValidationError for what is not computed.
    `to_config`: the inverse, for code that reads such configurations.
    `tensor_shapes`: the stored tensors by name without prefix.
    `key_prefix`: the prefix that these names may have in a file.
    `seeded_scale`: (centre, standard deviation) of a stored tensor's seeded values.
    `block_vectors`: number of weights in one block's biases and norms, for an architecture and a part's numbers of
    query heads, key and value heads, and MLP columns.
    `final_vectors`: the same for the norm after the last block.
    """

    name: str
    model_types: frozenset[str]
    from_config: Callable[[Mapping[str, Any]], Architecture]
    to_config: Callable[[Architecture], dict[str, Any]]
    tensor_shapes: Callable[[Architecture], Shapes]
    key_prefix: str
    seeded_scale: Callable[[str, Architecture], tuple[float, float]]
    block_vectors: Callable[[Architecture, int, int, int], int]
    final_vectors: Callable[[Architecture], int]
