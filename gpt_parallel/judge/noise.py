"""The noise of sampling, implemented from its description in docs/design.md ("Noise") alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 1 << 32


def _hash(words: Tensor) -> Tensor:
    """The description's h: a permutation of 32-bit words, here in int64."""
    words = words.remainder(_WORD)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        words = words.bitwise_xor(words.div(1 << shift, rounding_mode="floor"))
        words = words.mul(factor).remainder(_WORD)
    return words.bitwise_xor(words.div(1 << 16, rounding_mode="floor"))


def gumbel(seed: int, request_id: int, positions: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Standard Gumbel noise [N, V], float64, of one request at N positions of its sequence."""

    def words(*values: int) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    key = _hash(words(request_id) + _hash(words(seed % _WORD)))
    a = _hash(key + _hash(words(*positions)))[:, None]
    b = _hash(a.bitwise_xor(0x5BD1E995))
    ids = torch.arange(vocab_size, dtype=torch.int64, device=device)[None]
    top = _hash(_hash(ids * 0x9E3779B1 + a).bitwise_xor(b)).div(1 << 9, rounding_mode="floor")
    return -(-((top.double() + 0.5) / (1 << 23)).log()).log()
