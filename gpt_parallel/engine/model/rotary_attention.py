"""Attention of rotated queries to rotated keys, with fewer key and value heads than query heads, or a window."""

from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.model.attention_kernel import attend
from gpt_parallel.engine.model.kv_cache import LayerCache, Step
from gpt_parallel.engine.model.layers import Norm, Product
from gpt_parallel.engine.model.linear import Linear
from gpt_parallel.engine.model.rotary import Rotation
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture


class Reach(NamedTuple):
    """The keys that a step's queries attend to: from the cache's `start` on, of those where `mask` says so."""

    start: int = 0
    mask: Tensor | None = None


def reach_of(step: Step, window: int | None, device: torch.device) -> Reach:
    """All keys up to the query's own, or the last `window` of them, its own included."""
    if window is None or step.window <= window:
        return Reach(0, step.mask)
    if step.decode and step.positions is None:
        return Reach(step.window - window)
    keys = torch.arange(step.window, device=device)
    if step.positions is not None:
        assert step.mask is not None
        return Reach(0, step.mask & (keys > step.positions[:, None] - window)[:, None, None])
    return Reach(0, (keys <= keys[:, None]) & (keys > keys[:, None] - window))


class RotaryAttention:
    """Queries, keys and values are one product with an output row for each: Q of all heads, then K, then V.

    `queries`: the rows of the whole model's Q that are this part's, and columns of the projection; `keys`: those of K
    and V.
    Legend: B batch, T tokens, N = B·T, D hidden size, H local query heads, G local key and value heads, d head size.
    """

    def __init__(
        self,
        architecture: Architecture,
        part: Part,
        dtype: torch.dtype,
        device: torch.device,
        *,
        query_norm: Norm | None = None,
        key_norm: Norm | None = None,
    ) -> None:
        size, width = architecture.head_size, architecture.hidden_size
        self._num_heads, self._num_kv_heads, self._head_size = len(part.heads), len(part.kv_heads), size
        self.queries = range(part.heads.start * size, part.heads.stop * size)
        self.keys = range(part.kv_heads.start * size, part.kv_heads.stop * size)
        num_rows, switches = len(self.queries) + 2 * len(self.keys), architecture.switches
        self.query_norm, self.key_norm = query_norm, key_norm
        self.qkv: Product = Linear(width, num_rows, dtype, device, has_bias="qkv_bias" in switches)
        self.out: Product = Linear(len(self.queries), width, dtype, device, has_bias="output_bias" in switches)

    def __call__(self, x: Tensor, cache: LayerCache, step: Step, rotation: Rotation, reach: Reach) -> Tensor:
        """x [N, D] → the heads' outputs [N, H·d], before the output projection."""
        num_turning = self._num_heads + self._num_kv_heads
        shape = (step.num_rows,) if step.decode else (step.num_rows, step.window)
        heads = self.qkv(x).view(*shape, num_turning + self._num_kv_heads, self._head_size)
        turning, v = heads.split_with_sizes((num_turning, self._num_kv_heads), -2)
        q, k = rotation(self._normed(turning)).split_with_sizes((self._num_heads, self._num_kv_heads), -2)
        y = self._decode(q, k, v, cache, step, reach) if step.decode else self._prefill(q, k, v, cache, reach)
        return y.reshape(-1, len(self.queries))

    def _normed(self, turning: Tensor) -> Tensor:
        if self.query_norm is None or self.key_norm is None:
            return turning
        q, k = turning.split_with_sizes((self._num_heads, self._num_kv_heads), -2)
        return torch.cat((self.query_norm(q), self.key_norm(k)), -2)

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache, reach: Reach) -> Tensor:
        """q [B, T, H, d], k and v [B, T, G, d] → [B, T, H, d]."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        cache.target.select(1, 0).copy_(k)
        cache.target.select(1, 1).copy_(v)
        return attend(q, k, v, in_prefill=True, mask=reach.mask).transpose(1, 2)

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache, step: Step, reach: Reach) -> Tensor:
        """q [B, H, d], k and v [B, G, d] → [B, H, 1, d]."""
        if step.positions is None:
            cache.target.select(1, 0).copy_(k)
            cache.target.select(1, 1).copy_(v)
        else:
            cache.target[step.rows, :, :, step.positions] = torch.stack((k, v), 1)
        keys, values = cache.keys, cache.values
        if reach.start:
            keys, values = keys[:, :, reach.start :], values[:, :, reach.start :]
        return attend(q.unsqueeze(2), keys, values, in_prefill=False, mask=reach.mask)
