"""What decoders of all families have in common: a token table, blocks, a last norm, and a head that may be tied.

A shard or stage of a model is the same code with fewer heads, columns or layers; the caller passes `reduce`, which
completes a row-parallel product. There is no communication here. Plain objects rather than `nn.Module`s: there is
nothing to train, and looking up a submodule costs as much as a small kernel.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_parallel.engine.model.interface import Parameter, Reduce, Source
from gpt_parallel.engine.model.kv_cache import KVCache, Step
from gpt_parallel.engine.model.layers import Block, Norm, Table
from gpt_parallel.engine.model.linear import Kernel, PackedLinear
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import family_of

BlockT = TypeVar("BlockT", bound=Block)


class Decoder(ABC, Generic[BlockT]):
    """The part of a decoder that one device holds. Weights are allocated, not filled: see `weights.load`.

    Families give the stored names of the token table, the blocks and the last norm, and make blocks and norm.
    Legend: B batch, T tokens, N = B·T, D hidden size, V local vocabulary.
    """

    EMBEDDING: ClassVar[str]
    BLOCKS: ClassVar[str]
    NORM: ClassVar[str]

    def __init__(
        self,
        architecture: Architecture,
        part: Part,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reduce: Reduce | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.architecture, self.part, self.dtype, self._reduce = architecture, part, dtype, reduce
        if part.has_embedding:
            self.embedding = Table(architecture.vocab_size, architecture.hidden_size, dtype, self.device)
        self._blocks = [self.make_block(layer) for layer in part.layers]
        self._is_tied = part.has_embedding and architecture.tied_head
        if part.has_head:
            self.norm = self.make_norm()
            if not self._is_tied:
                self.lm_head = Table(len(part.vocabulary), architecture.hidden_size, dtype, self.device)
        self._packed_head: PackedLinear | None = None
        self.kernel: Kernel = "plain"

    @abstractmethod
    def make_block(self, layer: int) -> BlockT: ...

    @abstractmethod
    def make_norm(self) -> Norm: ...

    def parameters(self) -> Iterator[Parameter]:
        """All parameters until packed, each with the stored tensors that it is made of."""
        if self.part.has_embedding:
            yield Parameter(self.embedding.weight, (Source(self.EMBEDDING),))
        for layer, block in zip(self.part.layers, self._blocks, strict=True):
            yield from block.parameters(f"{self.BLOCKS}.{layer}")
        if self.part.has_head:
            yield from self.norm.parameters(self.NORM)
            if not self._is_tied:
                name = self.EMBEDDING if self.architecture.tied_head else family_of(self.architecture).head_name
                yield Parameter(self.lm_head.weight, (Source(name, 0, (self.part.vocabulary,)),))

    def pack(self) -> None:
        """Turn the loaded weights of all products into packed ones. A tied head keeps its plain rows for look-up."""
        for block in self._blocks:
            for owner, name in block.linears():
                plain = getattr(owner, name)
                setattr(owner, name, PackedLinear(plain.weight, plain.bias))
        if self.part.has_head:
            self._packed_head = PackedLinear(self._head_weight(), None)
            if not self._is_tied:
                del self.lm_head
        self.kernel = "packed"

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        """Prompts [B, T] or next tokens [B] → [N, D]."""
        return self.embedding.weight.index_select(0, tokens.view(-1))

    @abstractmethod
    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        """[N, D] through this part's layers; the cache's first B rows are used."""

    def head(self, x: Tensor) -> Tensor:
        """[N, D] → logits of this part's vocabulary [N, V], float32."""
        x = self.norm(x)
        logits = self._packed_head(x) if self._packed_head else F.linear(x, self._head_weight())
        return logits.float()

    def _head_weight(self) -> Tensor:
        if self._is_tied:
            return self.embedding.weight[self.part.vocabulary.start : self.part.vocabulary.stop]
        return self.lm_head.weight
