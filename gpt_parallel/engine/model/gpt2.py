"""GPT-2 with Hugging Face's weight names: learned positions, layer norms, an MLP of two products.

Legend: B batch, T tokens, N = B·T, D hidden size, H local heads, d head size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from gpt_parallel.engine.model.activations import ACTIVATIONS
from gpt_parallel.engine.model.attention_kernel import attend
from gpt_parallel.engine.model.decoder import Decoder
from gpt_parallel.engine.model.interface import Parameter, Reduce, Source
from gpt_parallel.engine.model.kv_cache import KVCache, LayerCache, Step
from gpt_parallel.engine.model.layers import LayerNorm, Product, Table, finish, linears_of
from gpt_parallel.engine.model.linear import Linear
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture


class Attention:
    def __init__(
        self, architecture: Architecture, part: Part, layer: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._heads, self._head_size = len(part.heads), architecture.head_size
        self._width = len(part.heads) * architecture.head_size
        heads = range(part.heads.start * self._head_size, part.heads.stop * self._head_size)
        starts = (index * architecture.hidden_size + heads.start for index in range(3))
        self._rows = tuple(range(start, start + self._width) for start in starts)
        self._scale = _scale(architecture, layer)
        self._upcasts = "upcast_attention" in architecture.switches
        self.c_attn: Product = Linear(architecture.hidden_size, 3 * self._width, dtype, device)
        self.c_proj: Product = Linear(self._width, architecture.hidden_size, dtype, device)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        """x [N, D] → the heads' outputs [N, H·d], before the output projection."""
        return self._decode(x, cache, step) if step.decode else self._prefill(x, cache, step)

    def parameters(self, name: str) -> Iterator[Parameter]:
        """`c_attn` is stored as Q, K and V side by side in its output columns, so a shard takes three ranges of it."""
        heads, qkv = self._rows[0], self._rows
        yield from _column_parallel(self.c_attn, f"{name}.c_attn", qkv)
        yield from _row_parallel(self.c_proj, f"{name}.c_proj", heads)

    def _prefill(self, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        qkv = self.c_attn(x).view(step.num_rows, step.window, 3, self._heads, self._head_size)
        qkv = qkv.permute(0, 2, 3, 1, 4)  # [B, 3, H, T, d]
        cache.target.copy_(qkv.narrow(1, 1, 2))
        q, k, v = qkv.unbind(1)
        y = self._attend(q, k, v, in_prefill=True)
        return y.transpose(1, 2).reshape(-1, self._width)

    def _decode(self, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        qkv = self.c_attn(x).view(step.num_rows, 3, self._heads, self._head_size)
        if step.positions is None:
            cache.target.copy_(qkv.narrow(1, 1, 2))
        else:
            cache.target[step.rows, :, :, step.positions] = qkv.narrow(1, 1, 2)
        q = qkv.select(1, 0).unsqueeze(2)  # [B, H, 1, d]
        y = self._attend(q, cache.keys, cache.values, in_prefill=False, mask=step.mask)
        return y.reshape(-1, self._width)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, in_prefill: bool, mask: Tensor | None = None) -> Tensor:
        if not self._upcasts:
            return attend(q, k, v, in_prefill=in_prefill, mask=mask, scale=self._scale)
        y = attend(q.float(), k.float(), v.float(), in_prefill=in_prefill, mask=mask, scale=self._scale)
        return y.to(q.dtype)


def _scale(architecture: Architecture, layer: int) -> float | None:
    """The factor of queries' products with keys; None for the usual 1 / √d."""
    switches = architecture.switches
    if "scaled_by_layer" not in switches:
        return 1.0 if "unscaled_attention" in switches else None
    return (1.0 if "unscaled_attention" in switches else architecture.head_size**-0.5) / (layer + 1)


class Mlp:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.c_fc: Product = Linear(architecture.hidden_size, len(part.mlp_columns), dtype, device)
        self.c_proj: Product = Linear(len(part.mlp_columns), architecture.hidden_size, dtype, device)
        self._activation = ACTIVATIONS[architecture.activation]
        self._columns = part.mlp_columns

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] → this shard's columns, activated, before the output projection."""
        return self.c_fc.activated(x, self._activation)

    def parameters(self, name: str) -> Iterator[Parameter]:
        yield from _column_parallel(self.c_fc, f"{name}.c_fc", (self._columns,))
        yield from _row_parallel(self.c_proj, f"{name}.c_proj", self._columns)


class Block:
    def __init__(
        self, architecture: Architecture, part: Part, layer: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.ln_1 = LayerNorm(architecture.hidden_size, architecture.norm_epsilon, dtype, device)
        self.attn = Attention(architecture, part, layer, dtype, device)
        self.ln_2 = LayerNorm(architecture.hidden_size, architecture.norm_epsilon, dtype, device)
        self.mlp = Mlp(architecture, part, dtype, device)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step, reduce: Reduce | None) -> Tensor:
        x = finish(x, self.attn(self.ln_1(x), cache, step), self.attn.c_proj, reduce)
        return finish(x, self.mlp(self.ln_2(x)), self.mlp.c_proj, reduce)

    def parameters(self, name: str) -> Iterator[Parameter]:
        for part in ("ln_1", "attn", "ln_2", "mlp"):
            yield from getattr(self, part).parameters(f"{name}.{part}")

    def linears(self) -> Iterator[tuple[object, str]]:
        return linears_of(self.attn, self.mlp)


def _column_parallel(linear: Product, name: str, columns: tuple[range, ...]) -> Iterator[Parameter]:
    """The parameters of a column-parallel product: a shard has these output columns. Stored as [inputs, outputs]."""
    assert isinstance(linear, Linear)
    assert linear.bias is not None
    yield Parameter(linear.weight, (Source(f"{name}.weight", -1, columns, transposed=True),))
    yield Parameter(linear.bias, (Source(f"{name}.bias", -1, columns),))


def _row_parallel(linear: Product, name: str, rows: range) -> Iterator[Parameter]:
    """The parameters of a row-parallel product: a shard has these input rows; its whole bias is added after the sum."""
    assert isinstance(linear, Linear)
    assert linear.bias is not None
    yield Parameter(linear.weight, (Source(f"{name}.weight", 0, (rows,), transposed=True),))
    yield Parameter(linear.bias, (Source(f"{name}.bias"),))


class GPT2(Decoder[Block]):
    """The part of a GPT-2 that one device holds."""

    EMBEDDING, BLOCKS, NORM = "wte.weight", "h", "ln_f"

    def __init__(
        self,
        architecture: Architecture,
        part: Part,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reduce: Reduce | None = None,
    ) -> None:
        super().__init__(architecture, part, dtype, device, reduce)
        if part.has_embedding:
            self.positions = Table(architecture.max_positions, architecture.hidden_size, dtype, self.device)

    def make_block(self, layer: int) -> Block:
        return Block(self.architecture, self.part, layer, self.dtype, self.device)

    def make_norm(self) -> LayerNorm:
        return LayerNorm(self.architecture.hidden_size, self.architecture.norm_epsilon, self.dtype, self.device)

    def parameters(self) -> Iterator[Parameter]:
        yield from super().parameters()
        if self.part.has_embedding:
            yield Parameter(self.positions.weight, (Source("wpe.weight"),))

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        embedded = super().embed(tokens, step)
        if not step.decode:
            rows = embedded.view(step.num_rows, step.window, -1)
            return (rows + self.positions.weight.narrow(0, 0, step.window)).view(-1, self.architecture.hidden_size)
        if step.positions is None:
            assert step.position is not None
            return embedded.add_(self.positions.weight.select(0, step.position))
        return embedded.add_(self.positions.weight.index_select(0, step.positions))

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        for block, layer in zip(self._blocks, cache.layers(step), strict=True):
            x = block(x, layer, step, self._reduce)
        return x
