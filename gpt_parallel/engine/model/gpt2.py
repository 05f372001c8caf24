"""GPT-2 as single-device code with Hugging Face's weight names. It knows nothing of other ranks.

A shard or stage of the model is the same code with fewer heads, columns or layers; the caller passes `reduce`, which
completes a row-parallel product. Plain objects rather than `nn.Module`s: there is nothing to train, and looking up a
submodule costs as much as a small kernel.

Legend: B batch, T tokens, N = B·T, D n_embd, H local heads, d head size, V local vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt_parallel.engine.model.attention_kernel import attend
from gpt_parallel.engine.model.kv_cache import KVCache, LayerCache, Step
from gpt_parallel.engine.model.linear import ACTIVATIONS, Kernel, Linear, PackedLinear
from gpt_parallel.schema.model import Architecture

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Part:
    """How much of the model this instance holds."""

    layers: range
    num_heads: int
    num_mlp_columns: int
    vocabulary: range
    has_embedding: bool = True
    has_head: bool = True

    @classmethod
    def whole(cls, shape: Architecture) -> "Part":
        return cls(range(shape.n_layer), shape.n_head, shape.n_inner, range(shape.vocab_size))


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


class Attention:
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self._heads, self._head_size = part.num_heads, shape.head_size
        self._width = part.num_heads * shape.head_size
        self.c_attn: Linear | PackedLinear = Linear(shape.n_embd, 3 * self._width, dtype, device)
        self.c_proj: Linear | PackedLinear = Linear(self._width, shape.n_embd, dtype, device)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step) -> Tensor:
        """x [N, D] → what the heads saw [N, H·d], before the output projection."""
        return self._decode(x, cache, step) if step.decode else self._prefill(x, cache, step)

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
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.c_fc: Linear | PackedLinear = Linear(shape.n_embd, part.num_mlp_columns, dtype, device)
        self.c_proj: Linear | PackedLinear = Linear(part.num_mlp_columns, shape.n_embd, dtype, device)
        self._activation = ACTIVATIONS[shape.activation_function]

    def __call__(self, x: Tensor) -> Tensor:
        """[N, D] → this shard's columns, activated, before the output projection."""
        return self.c_fc.activated(x, self._activation)


class Block:
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        self.ln_1 = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, device)
        self.attn = Attention(shape, part, dtype, device)
        self.ln_2 = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, device)
        self.mlp = Mlp(shape, part, dtype, device)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step, reduce: Reduce | None) -> Tensor:
        x = _finish(x, self.attn(self.ln_1(x), cache, step), self.attn.c_proj, reduce)
        return _finish(x, self.mlp(self.ln_2(x)), self.mlp.c_proj, reduce)

    def linears(self) -> Iterator[tuple[Attention | Mlp, str]]:
        for owner in (self.attn, self.mlp):
            for name, value in vars(owner).items():
                if isinstance(value, Linear):
                    yield owner, name


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
        shape: Architecture,
        part: Part,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reduce: Reduce | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.shape, self.part, self.dtype, self._reduce = shape, part, dtype, reduce
        if part.has_embedding:
            self.wte = Table(shape.vocab_size, shape.n_embd, dtype, self.device)
            self.wpe = Table(shape.n_positions, shape.n_embd, dtype, self.device)
        self.h = {layer: Block(shape, part, dtype, self.device) for layer in part.layers}
        if part.has_head:
            self.ln_f = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, self.device)
            if not part.has_embedding:
                self.lm_head = Table(len(part.vocabulary), shape.n_embd, dtype, self.device)
        self._blocks = list(self.h.values())
        self._packed_head: PackedLinear | None = None
        self.kernel: Kernel = "plain"
        self.parameter_bytes = sum(parameter.nbytes for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under Hugging Face's name (`lm_head.weight` where the head stands alone), until packed."""
        owners: dict[str, Table | Norm | Linear | PackedLinear] = {}
        for name in ("wte", "wpe"):
            if self.part.has_embedding:
                owners[name] = getattr(self, name)
        for layer, block in self.h.items():
            owners |= {
                f"h.{layer}.ln_1": block.ln_1,
                f"h.{layer}.attn.c_attn": block.attn.c_attn,
                f"h.{layer}.attn.c_proj": block.attn.c_proj,
                f"h.{layer}.ln_2": block.ln_2,
                f"h.{layer}.mlp.c_fc": block.mlp.c_fc,
                f"h.{layer}.mlp.c_proj": block.mlp.c_proj,
            }
        if self.part.has_head:
            owners["ln_f"] = self.ln_f
            if not self.part.has_embedding:
                owners["lm_head"] = self.lm_head
        for name, owner in owners.items():
            for kind, value in vars(owner).items():
                if kind in ("weight", "bias"):
                    yield f"{name}.{kind}", value

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
            return (rows + self.wpe.weight.narrow(0, 0, step.window)).view(-1, self.shape.n_embd)
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
