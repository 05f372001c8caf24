"""The KV cache of a lane: allocated once for the lane's longest batch and reused by every batch."""

from typing import NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """The shared inputs of all blocks in one forward pass.

    Prefill (`decode` False) writes positions 0 … window−1 of the cache and attends causally; rows shorter than that are
    padded on the right, where a causal mask hides padding. Decoding writes one position per row:
    `position` where it is the same for all rows, else `positions` [B] with `mask` [B, 1, 1, window].
    """

    decode: bool
    num_rows: int
    window: int
    position: int | None = None
    positions: Tensor | None = None
    mask: Tensor | None = None
    rows: Tensor | None = None


class LayerCache(NamedTuple):
    """One layer's views for a step: the target of new keys and values, and the keys and values to attend to.

    `target` is [B, 2, H, d], in prefill [B, 2, H, window, d]; with different positions per row it is the whole layer.
    `keys` and `values` are [B, H, window, d].
    """

    target: Tensor
    keys: Tensor
    values: Tensor


class KVCache:
    """Keys and values of one stage's layers in one tensor: [layers, B, 2, heads, positions, head size]."""

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        num_positions: int,
        head_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, batch_size, 2, num_heads, num_positions, head_size)
        self._data = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_positions(self) -> int:
        return self._data.shape[4]

    @property
    def num_bytes(self) -> int:
        return self._data.nbytes

    def layers(self, step: Step) -> list[LayerCache]:
        """Views of all layers for a step, created at once because creating them one by one costs more."""
        rows = self._data.narrow(1, 0, step.num_rows)
        window = rows.narrow(4, 0, step.window)
        if not step.decode:
            targets = window
        elif step.position is not None:
            targets = rows.select(4, step.position)
        else:
            targets = rows
        return list(map(LayerCache, targets.unbind(), window.select(2, 0).unbind(), window.select(2, 1).unbind()))
