"""GPT-2 as single-device code with Hugging Face's weight names. It knows nothing of other ranks.

A shard or stage of the model is the same code with fewer heads, columns or layers; the caller passes `reduce`, which
completes a row-parallel product. Legend: B batch, T tokens, D n_embd, H local heads, d head size, V local vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt_parallel.engine.kv_cache import KVCache
from gpt_parallel.spec import Architecture

Reduce = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
}


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


@dataclass(frozen=True)
class Step:
    """What all blocks of one forward pass share.

    Prefill (`decode` False) writes positions 0 … T−1 of the cache and attends causally; rows shorter than T are padded
    on the right, where a causal mask keeps padding out of sight. Decoding writes one position per row: `position`
    where all rows stand at the same one, else `positions` [B] with `mask` [B, 1, 1, window].
    """

    decode: bool
    num_rows: int
    window: int
    position: int | None = None
    positions: Tensor | None = None
    mask: Tensor | None = None


class Linear(nn.Module):
    """y = x Wᵀ + b with the bias apart, because a row-parallel bias belongs after the reduction."""

    def __init__(self, num_inputs: int, num_outputs: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = _parameter((num_outputs, num_inputs), dtype, device)
        self.bias = _parameter((num_outputs,), dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def without_bias(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Table(nn.Module):
    """A row per token or position."""

    def __init__(self, num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = _parameter((num_rows, width), dtype, device)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Norm(nn.Module):
    def __init__(self, width: int, epsilon: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = _parameter((width,), dtype, device)
        self.bias = _parameter((width,), dtype, device)
        self._epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self._epsilon)


class Attention(nn.Module):
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._heads, self._head_size = part.num_heads, shape.head_size
        width = part.num_heads * shape.head_size
        self.c_attn = Linear(shape.n_embd, 3 * width, dtype, device)
        self.c_proj = Linear(width, shape.n_embd, dtype, device)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, step: Step) -> Tensor:
        """x [B, T, D], keys and values [B, H, positions, d] → this shard's part of the output [B, T, D], no bias."""
        rows, tokens, _ = x.shape
        qkv = self.c_attn(x).view(rows, tokens, 3, self._heads, self._head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, H, T, d]
        if not step.decode:
            keys[:, :, :tokens] = k
            values[:, :, :tokens] = v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            _write_one(keys, k, step)
            _write_one(values, v, step)
            y = F.scaled_dot_product_attention(
                q, keys[:, :, : step.window], values[:, :, : step.window], attn_mask=step.mask
            )
        return self.c_proj.without_bias(y.transpose(1, 2).reshape(rows, tokens, -1))


def _write_one(cache: Tensor, new: Tensor, step: Step) -> None:
    """Put new [B, H, 1, d] at each row's position of cache [B, H, positions, d]."""
    if step.position is not None:
        cache[:, :, step.position] = new[:, :, 0]
    else:
        rows = torch.arange(step.num_rows, device=cache.device)
        cache[rows, :, step.positions] = new[:, :, 0]


class Mlp(nn.Module):
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.c_fc = Linear(shape.n_embd, part.num_mlp_columns, dtype, device)
        self.c_proj = Linear(part.num_mlp_columns, shape.n_embd, dtype, device)
        self._activation = _ACTIVATIONS[shape.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → this shard's part of the output [B, T, D], no bias."""
        return self.c_proj.without_bias(self._activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, shape: Architecture, part: Part, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.ln_1 = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, device)
        self.attn = Attention(shape, part, dtype, device)
        self.ln_2 = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, device)
        self.mlp = Mlp(shape, part, dtype, device)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, step: Step, reduce: Reduce) -> Tensor:
        x = x + reduce(self.attn(self.ln_1(x), keys, values, step)) + self.attn.c_proj.bias
        return x + reduce(self.mlp(self.ln_2(x))) + self.mlp.c_proj.bias


class GPT2(nn.Module):
    """The part of a GPT-2 that one device holds. Weights are allocated, not filled: see `weights.load`."""

    def __init__(
        self,
        shape: Architecture,
        part: Part,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reduce: Reduce = lambda x: x,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self.shape, self.part, self._reduce = shape, part, reduce
        if part.has_embedding:
            self.wte = Table(shape.vocab_size, shape.n_embd, dtype, device)
            self.wpe = Table(shape.n_positions, shape.n_embd, dtype, device)
        self.h = nn.ModuleDict({str(layer): Block(shape, part, dtype, device) for layer in part.layers})
        if part.has_head:
            self.ln_f = Norm(shape.n_embd, shape.layer_norm_epsilon, dtype, device)
            if not part.has_embedding:
                self.lm_head = Table(len(part.vocabulary), shape.n_embd, dtype, device)
        self._blocks = list(self.h.values())

    @property
    def parameter_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters())

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """tokens [B, T], positions [B, T] or [T] → [B, T, D]."""
        embedded: Tensor = self.wte(tokens) + self.wpe(positions)
        return embedded

    def blocks(self, x: Tensor, cache: KVCache, step: Step) -> Tensor:
        """[B, T, D] through this part's layers; the cache's first B rows are used."""
        for index, block in enumerate(self._blocks):
            keys, values = cache.keys[index, : step.num_rows], cache.values[index, : step.num_rows]
            x = block(x, keys, values, step, self._reduce)
        return x

    def head(self, x: Tensor) -> Tensor:
        """[B, D] → logits of this part's vocabulary [B, V], float32."""
        if self.part.has_embedding:
            weight = self.wte.weight[self.part.vocabulary.start : self.part.vocabulary.stop]
        else:
            weight = self.lm_head.weight
        return F.linear(self.ln_f(x), weight).float()


def _parameter(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)
