"""Llama and the families of its form (see `schema/families/llama.py`), with Hugging Face's weight names.

Legend: N tokens of all rows, D hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt_parallel.engine.model.activations import ACTIVATIONS
from gpt_parallel.engine.model.decoder import Decoder
from gpt_parallel.engine.model.interface import Parameter, Reduce
from gpt_parallel.engine.model.kv_cache import KVCache, LayerCache, Step
from gpt_parallel.engine.model.layers import Product, RmsNorm, column_parallel, finish, linears_of, row_parallel
from gpt_parallel.engine.model.linear import Linear
from gpt_parallel.engine.model.rotary import Rotary, Rotation
from gpt_parallel.engine.model.rotary_attention import Reach, RotaryAttention, reach_of
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture


class Mlp:
    """Columns of an activated gate times columns of `up`; both are one product."""

    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        width, has_bias = architecture.hidden_size, "mlp_bias" in architecture.switches
        self.columns = part.mlp_columns
        self._activation = ACTIVATIONS[architecture.activation].function
        self.gate_up: Product = Linear(width, 2 * len(self.columns), dtype, device, has_bias=has_bias)
        self.down: Product = Linear(len(self.columns), width, dtype, device, has_bias=has_bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] → this shard's columns, before the output projection."""
        gate, up = self.gate_up(x).chunk(2, -1)
        return self._activation(gate) * up


class Block:
    """One layer; what its steps have in common with other layers' comes with them, see `Llama.blocks`."""

    def __init__(
        self, architecture: Architecture, part: Part, layer: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def norm(width: int) -> RmsNorm:
            return RmsNorm(width, architecture.norm_epsilon, dtype, device)

        norms = {}
        if "qk_norm" in architecture.switches:
            norms = {"query_norm": norm(architecture.head_size), "key_norm": norm(architecture.head_size)}
        self.window = architecture.window_of(layer)
        self.attention_norm, self.mlp_norm = norm(architecture.hidden_size), norm(architecture.hidden_size)
        self.attention = RotaryAttention(architecture, part, dtype, device, **norms)
        self.mlp = Mlp(architecture, part, dtype, device)

    def __call__(
        self, x: Tensor, cache: LayerCache, step: Step, rotation: Rotation, reach: Reach, reduce: Reduce | None
    ) -> Tensor:
        attended = self.attention(self.attention_norm(x), cache, step, rotation, reach)
        x = finish(x, attended, self.attention.out, reduce)
        return finish(x, self.mlp(self.mlp_norm(x)), self.mlp.down, reduce)

    def parameters(self, name: str) -> Iterator[Parameter]:
        attention, mlp = self.attention, self.mlp
        rows = {"q": attention.queries, "k": attention.keys, "v": attention.keys}
        sources = tuple((f"{name}.self_attn.{kind}_proj", (own,)) for kind, own in rows.items())
        yield from column_parallel(attention.qkv, sources)
        yield from row_parallel(attention.out, f"{name}.self_attn.o_proj", attention.queries)
        sources = tuple((f"{name}.mlp.{kind}_proj", (mlp.columns,)) for kind in ("gate", "up"))
        yield from column_parallel(mlp.gate_up, sources)
        yield from row_parallel(mlp.down, f"{name}.mlp.down_proj", mlp.columns)
        yield from self.attention_norm.parameters(f"{name}.input_layernorm")
        yield from self.mlp_norm.parameters(f"{name}.post_attention_layernorm")
        for kind, norm in (("q", attention.query_norm), ("k", attention.key_norm)):
            if norm is not None:
                yield from norm.parameters(f"{name}.self_attn.{kind}_norm")

    def linears(self) -> Iterator[tuple[object, str]]:
        return linears_of(self.attention, self.mlp)


class Llama(Decoder[Block]):
    """The part of a Llama that one device holds."""

    EMBEDDING, BLOCKS, NORM = "embed_tokens.weight", "layers", "norm"

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
        return Block(self.architecture, self.part, layer, self.dtype, self.device)

    def make_norm(self) -> RmsNorm:
        return RmsNorm(self.architecture.hidden_size, self.architecture.norm_epsilon, self.dtype, self.device)

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        rotation = self._rotary(step)
        windows = {block.window for block in self._blocks}
        reaches = {window: reach_of(step, window, self.device) for window in windows}
        for block, layer in zip(self._blocks, cache.layers(step), strict=True):
            x = block(x, layer, step, rotation, reaches[block.window], self._reduce)
        return x
