"""GPT-2 as single-device code with Hugging Face's weight names. It contains no communication.

A shard or stage of the model is the same code with fewer heads, columns or layers; the caller passes `reduce`, which
completes a row-parallel product. Plain objects rather than `nn.Module`s: there is nothing to train, and looking up a
submodule costs as much as a small kernel.

Legend: B batch, T tokens, N = B·T, D hidden size, H local heads, d head size, V local vocabulary.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_parallel.engine.model.attention_kernel import attend
from gpt_parallel.engine.model.interface import Parameter, Reduce, Source
from gpt_parallel.engine.model.kv_cache import KVCache, LayerCache, Step
from gpt_parallel.engine.model.linear import ACTIVATIONS, Kernel, Linear, PackedLinear
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.model import Architecture


class Table:
    """A row per token or position."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(num_rows, width, dtype=dtype, device=device)


class Norm:
    def __init__(self, width: int, epsilon: float, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.empty(width, dtype=dtype, device=device)
        self.bias = torch.empty(width, dtype=dtype, device=device)
        self._shape, self._epsilon = (width,), epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self._shape, self.weight, self.bias, self._epsilon)

    def parameters(self, name: str) -> Iterator[Parameter]:
        yield Parameter(self.weight, (Source(f"{name}.weight"),))
        yield Parameter(self.bias, (Source(f"{name}.bias"),))


class Attention:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self._heads, self._head_size = len(part.heads), architecture.head_size
        self._width = len(part.heads) * architecture.head_size
        heads = range(part.heads.start * self._head_size, part.heads.stop * self._head_size)
        starts = (index * architecture.hidden_size + heads.start for index in range(3))
        self._rows = tuple(range(start, start + self._width) for start in starts)
        self.c_attn: Linear | PackedLinear = Linear(architecture.hidden_size, 3 * self._width, dtype, device)
        self.c_proj: Linear | PackedLinear = Linear(self._width, architecture.hidden_size, dtype, device)

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
        y = attend(q, k, v, is_causal=True)
        return y.transpose(1, 2).reshape(-1, self._width)

    def _decode(self, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        qkv = self.c_attn(x).view(step.num_rows, 3, self._heads, self._head_size)
        if step.positions is None:
            cache.target.copy_(qkv.narrow(1, 1, 2))
        else:
            cache.target[step.rows, :, :, step.positions] = qkv.narrow(1, 1, 2)
        q = qkv.select(1, 0).unsqueeze(2)  # [B, H, 1, d]
        y = attend(q, cache.keys, cache.values, mask=step.mask)
        return y.reshape(-1, self._width)


class Mlp:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.c_fc: Linear | PackedLinear = Linear(architecture.hidden_size, len(part.mlp_columns), dtype, device)
        self.c_proj: Linear | PackedLinear = Linear(len(part.mlp_columns), architecture.hidden_size, dtype, device)
        self._activation = ACTIVATIONS[architecture.activation]
        self._columns = part.mlp_columns

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] → this shard's columns, activated, before the output projection."""
        return self.c_fc.activated(x, self._activation)

    def parameters(self, name: str) -> Iterator[Parameter]:
        yield from _column_parallel(self.c_fc, f"{name}.c_fc", (self._columns,))
        yield from _row_parallel(self.c_proj, f"{name}.c_proj", self._columns)


class Block:
    def __init__(self, architecture: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.ln_1 = Norm(architecture.hidden_size, architecture.norm_epsilon, dtype, device)
        self.attn = Attention(architecture, part, dtype, device)
        self.ln_2 = Norm(architecture.hidden_size, architecture.norm_epsilon, dtype, device)
        self.mlp = Mlp(architecture, part, dtype, device)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step, reduce: Reduce | None) -> Tensor:
        x = _finish(x, self.attn(self.ln_1(x), cache, step), self.attn.c_proj, reduce)
        return _finish(x, self.mlp(self.ln_2(x)), self.mlp.c_proj, reduce)

    def parameters(self, name: str) -> Iterator[Parameter]:
        for part in ("ln_1", "attn", "ln_2", "mlp"):
            yield from getattr(self, part).parameters(f"{name}.{part}")

    def linears(self) -> Iterator[tuple[Attention | Mlp, str]]:
        for owner in (self.attn, self.mlp):
            for name, value in vars(owner).items():
                if isinstance(value, Linear):
                    yield owner, name


def _column_parallel(linear: Linear | PackedLinear, name: str, columns: tuple[range, ...]) -> Iterator[Parameter]:
    """The parameters of a column-parallel product: a shard has these output columns. Stored as [inputs, outputs]."""
    assert isinstance(linear, Linear)
    yield Parameter(linear.weight, (Source(f"{name}.weight", -1, columns, transposed=True),))
    yield Parameter(linear.bias, (Source(f"{name}.bias", -1, columns),))


def _row_parallel(linear: Linear | PackedLinear, name: str, rows: range) -> Iterator[Parameter]:
    """The parameters of a row-parallel product: a shard has these input rows; its whole bias is added after the sum."""
    assert isinstance(linear, Linear)
    yield Parameter(linear.weight, (Source(f"{name}.weight", 0, (rows,), transposed=True),))
    yield Parameter(linear.bias, (Source(f"{name}.bias"),))


def _finish(residual: Tensor, x: Tensor, projection: Linear | PackedLinear, reduce: Reduce | None) -> Tensor:
    """residual + x Wᵀ + b, where x and W may be one shard's part."""
    if reduce is None:
        return projection.added_to(residual, x)
    assert projection.bias is not None
    return reduce(projection.without_bias(x)).add_(projection.bias).add_(residual)


class GPT2:
    """The part of a GPT-2 that one device holds. Weights are allocated, not filled: see `weights.load`."""

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
            self.wte = Table(architecture.vocab_size, architecture.hidden_size, dtype, self.device)
            self.wpe = Table(architecture.max_positions, architecture.hidden_size, dtype, self.device)
        self.h = {layer: Block(architecture, part, dtype, self.device) for layer in part.layers}
        if part.has_head:
            self.ln_f = Norm(architecture.hidden_size, architecture.norm_epsilon, dtype, self.device)
            if not part.has_embedding:
                self.lm_head = Table(len(part.vocabulary), architecture.hidden_size, dtype, self.device)
        self._blocks = list(self.h.values())
        self._packed_head: PackedLinear | None = None
        self.kernel: Kernel = "plain"

    def parameters(self) -> Iterator[Parameter]:
        """All parameters until packed, each with the stored tensors that it is made of."""
        if self.part.has_embedding:
            yield Parameter(self.wte.weight, (Source("wte.weight"),))
            yield Parameter(self.wpe.weight, (Source("wpe.weight"),))
        for layer, block in self.h.items():
            yield from block.parameters(f"h.{layer}")
        if self.part.has_head:
            yield from self.ln_f.parameters("ln_f")
            if not self.part.has_embedding:
                yield Parameter(self.lm_head.weight, (Source("wte.weight", 0, (self.part.vocabulary,)),))

    def pack(self) -> None:
        """Turn the loaded weights of all products into packed ones. A tied head keeps its plain rows for look-up."""
        for block in self._blocks:
            for owner, name in block.linears():
                plain = getattr(owner, name)
                setattr(owner, name, PackedLinear(plain.weight, plain.bias))
        if self.part.has_head:
            self._packed_head = PackedLinear(self._head_weight(), None)
            if not self.part.has_embedding:
                del self.lm_head
        self.kernel = "packed"

    def embed(self, tokens: Tensor, step: Step) -> Tensor:
        """Prompts [B, T] or next tokens [B] → [N, D]."""
        embedded = self.wte.weight.index_select(0, tokens.view(-1))
        if not step.decode:
            rows = embedded.view(step.num_rows, step.window, -1)
            return (rows + self.wpe.weight.narrow(0, 0, step.window)).view(-1, self.architecture.hidden_size)
        if step.positions is None:
            assert step.position is not None
            return embedded.add_(self.wpe.weight.select(0, step.position))
        return embedded.add_(self.wpe.weight.index_select(0, step.positions))

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        """[N, D] through this part's layers; the cache's first B rows are used."""
        for block, layer in zip(self._blocks, cache.layers(step), strict=True):
            x = block(x, layer, step, self._reduce)
        return x

    def head(self, x: Tensor) -> Tensor:
        """[N, D] → logits of this part's vocabulary [N, V], float32."""
        x = self.ln_f(x)
        logits = self._packed_head(x) if self._packed_head else F.linear(x, self._head_weight())
        return logits.float()

    def _head_weight(self) -> Tensor:
        if self.part.has_embedding:
            return self.wte.weight[self.part.vocabulary.start : self.part.vocabulary.stop]
        return self.lm_head.weight
