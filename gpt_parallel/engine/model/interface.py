"""The interface of a model family's code, and the description of its parameters' stored tensors."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gpt_parallel.engine.model.kv_cache import KVCache, Step
from gpt_parallel.engine.model.linear import Kernel
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture

Reduce = Callable[[Tensor], Tensor]


class Source(NamedTuple):
    """The origin of a stretch of a parameter: ranges along one dimension of a stored tensor, or the whole tensor.

    `transposed`: the tensor is stored as [inputs, outputs].
    """

    tensor: str
    dimension: int = 0
    ranges: tuple[range, ...] = ()
    transposed: bool = False


class Parameter(NamedTuple):
    """A tensor to fill with the stretches of `sources`, one after another along its rows.

    The ranges of a single source may lie along its columns instead.
    """

    target: Tensor
    sources: tuple[Source, ...]


class DecoderPart(Protocol):
    """The part of a decoder that one rank holds. Weights are allocated, not filled: see `weights.load`.

    Legend: B batch, T tokens, N = B·T, D hidden size, V local vocabulary.
    """

    architecture: Architecture
    part: Part
    dtype: torch.dtype
    device: torch.device
    kernel: Kernel

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""

    def pack(self) -> None:
        """Turn the loaded weights of all products into packed ones."""

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        """Prompts [B, T] or next tokens [B] → [N, D]."""

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        """[N, D] through this part's layers; the cache's first B rows are used."""

    def head(self, x: Tensor) -> Tensor:
        """[N, D] → logits of this part's vocabulary [N, V], float32."""


def num_bytes(parameters: Iterable[Parameter]) -> int:
    return sum(parameter.target.nbytes for parameter in parameters)


def allocate_cache(model: DecoderPart, batch_size: int, num_positions: int) -> KVCache:
    """Allocate the keys and values of a batch, for at most as many positions as the model has."""
    return KVCache(
        num_layers=len(model.part.layers),
        batch_size=batch_size,
        num_heads=len(model.part.kv_heads),
        num_positions=min(num_positions, model.architecture.max_positions),
        head_size=model.architecture.head_size,
        dtype=model.dtype,
        device=model.device,
    )
