"""A lane's keys and values: allocated once, for the lane's longest batch, and reused by every batch."""

import torch


class KVCache:
    """Keys and values of one stage's layers: two tensors of [layers, B, heads, positions, head size]."""

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
        shape = (num_layers, batch_size, num_heads, num_positions, head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()
