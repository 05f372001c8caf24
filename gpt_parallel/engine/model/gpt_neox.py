"""GPT-NeoX with Hugging Face's weight names: partial rotations, layer norms, and a residual that may be parallel.

Legend: N tokens of all rows, D hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt_parallel.engine.model.activations import ACTIVATIONS
from gpt_parallel.engine.model.decoder import Decoder
from gpt_parallel.engine.model.interface import Parameter, Reduce
from gpt_parallel.engine.model.kv_cache import KVCache, LayerCache, Step
from gpt_parallel.engine.model.layers import LayerNorm, Product, column_parallel, finish, linears_of, row_parallel
from gpt_parallel.engine.model.linear import Linear
from gpt_parallel.engine.model.rotary import Rotary, Rotation
from gpt_parallel.engine.model.rotary_attention import Reach, RotaryAttention
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture


class Mlp:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.columns = part.mlp_columns
        self._activation = ACTIVATIONS[architecture.activation]
        self.up: Product = Linear(architecture.hidden_size, len(self.columns), dtype, device)
        self.down: Product = Linear(len(self.columns), architecture.hidden_size, dtype, device)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] → this shard's columns, activated, before the output projection."""
        return self.up.activated(x, self._activation)


class Block:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        width, epsilon = architecture.hidden_size, architecture.norm_epsilon
        self._heads, self._head_size = part.heads, architecture.head_size
        self._is_parallel = "parallel_residual" in architecture.switches
        self.attention_norm = LayerNorm(width, epsilon, dtype, device)
        self.attention = RotaryAttention(architecture, part, dtype, device)
        self.mlp_norm = LayerNorm(width, epsilon, dtype, device)
        self.mlp = Mlp(architecture, part, dtype, device)

    def __call__(
        self, x: Tensor, cache: LayerCache, step: Step, rotation: Rotation, reach: Reach, reduce: Reduce | None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), cache, step, rotation, reach)
        if not self._is_parallel:
            x = finish(x, attended, self.attention.out, reduce)
            return finish(x, self.mlp(self.mlp_norm(x)), self.mlp.down, reduce)
        inner = self.mlp(self.mlp_norm(x))
        if reduce is None:
            return self.mlp.down.added_to(self.attention.out.added_to(x, attended), inner)
        # Both are sums over shards of the same input, so one reduction completes them.
        total = reduce(self.attention.out.without_bias(attended).add_(self.mlp.down.without_bias(inner)))
        for bias in (self.attention.out.bias, self.mlp.down.bias):
            total = total if bias is None else total.add_(bias)
        return total.add_(x)

    def parameters(self, name: str) -> Iterator[Parameter]:
        """Q, K and V of a head are stored together, one head after another."""
        size, qkv = self._head_size, f"{name}.attention.query_key_value"
        starts = [[(3 * head + index) * size for head in self._heads] for index in range(3)]
        sources = tuple((qkv, tuple(range(start, start + size) for start in each)) for each in starts)
        yield from column_parallel(self.attention.qkv, sources)
        yield from row_parallel(self.attention.out, f"{name}.attention.dense", self.attention.queries)
        yield from column_parallel(self.mlp.up, ((f"{name}.mlp.dense_h_to_4h", (self.mlp.columns,)),))
        yield from row_parallel(self.mlp.down, f"{name}.mlp.dense_4h_to_h", self.mlp.columns)
        yield from self.attention_norm.parameters(f"{name}.input_layernorm")
        yield from self.mlp_norm.parameters(f"{name}.post_attention_layernorm")

    def linears(self) -> Iterator[tuple[object, str]]:
        return linears_of(self.attention, self.mlp)


class GPTNeoX(Decoder[Block]):
    """The part of a GPT-NeoX that one device holds."""

    EMBEDDING, BLOCKS, NORM = "embed_in.weight", "layers", "final_layer_norm"

    def __init__(
        self,
        architecture: Architecture,
        part: Part,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(architecture, part, dtype, device, reduce)
        assert architecture.rope is not None
        self._rotary = Rotary(architecture.rope, self.device)

    def make_block(self, layer: int) -> Block:
        return Block(self.architecture, self.part, self.dtype, self.device)

    def make_norm(self) -> LayerNorm:
        return LayerNorm(self.architecture.hidden_size, self.architecture.norm_epsilon, self.dtype, self.device)

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        rotation, reach = self._rotary(step), Reach(0, step.mask)
        for block, layer in zip(self._blocks, cache.layers(step), strict=True):
            x = block(x, layer, step, rotation, reach, self._reduce)
        return x
