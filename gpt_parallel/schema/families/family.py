"""What the parent and the ranks need to know of a model family, as data."""

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
    `to_config`: the same the other way round, for code that reads such configurations.
    `tensor_shapes`: the stored tensors by name without prefix.
    `key_prefix`: what may stand before these names in a file.
    `seeded_scale`: (centre, standard deviation) of a stored tensor's seeded values.
    `block_vectors`: weights of one block's biases and norms, of an architecture in a part with so many query heads,
    key and value heads, and MLP columns.
    `final_vectors`: those behind the last block.
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
