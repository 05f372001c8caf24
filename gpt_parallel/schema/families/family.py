"""The description of a model family as data, shared by launcher and ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gpt_parallel.schema.architecture import Architecture

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """A model family without torch; the code that computes it is in `engine/model`.

    `name`: its `model_type` in `config.json`.
    `from_config`: an architecture from a `config.json`; SpecError or ValidationError for what is not computed.
    `to_config`: the inverse, for code that reads such configurations.
    `problem`: what is wrong with an architecture that was not read from a `config.json`; None if nothing is.
    `tensor_shapes`: the stored tensors by name without prefix.
    `key_prefix`: the prefix that these names may have in a file, all but the untied head's, `head_name`.
    `seeded_scale`: (centre, standard deviation) of a stored tensor's seeded values.
    `block_vectors`: number of weights in one block's biases and norms, for an architecture and a part's numbers of
    query heads, key and value heads, and MLP columns.
    `final_vectors`: the same for the norm after the last block.
    """

    name: str
    from_config: Callable[[Mapping[str, Any]], Architecture]
    to_config: Callable[[Architecture], dict[str, Any]]
    problem: Callable[[Architecture], str | None]
    tensor_shapes: Callable[[Architecture], Shapes]
    key_prefix: str
    seeded_scale: Callable[[str, Architecture], tuple[float, float]]
    block_vectors: Callable[[Architecture, int, int, int], int]
    final_vectors: Callable[[Architecture], int]
    head_name: str = "lm_head.weight"

    def key(self, prefix: str, name: str) -> str:
        """The key of a stored tensor in a file whose other keys begin with `prefix`."""
        return (prefix.removesuffix(self.key_prefix) if name == self.head_name else prefix) + name
