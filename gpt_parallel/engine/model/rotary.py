"""Rotary position embedding with the scalings that transformers defines.

Frequencies are computed in float32 by the operations that transformers uses, since an angle at position 10,000 shows a
difference in the last bit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.model.kv_cache import Step
from gpt_parallel.schema.rope import Rope


class Rotation(NamedTuple):
    """A step's angles for tensors [B, T, heads, d] or [B, heads, d], of whose dimensions the first r turn.

    Cosines are [.., 1, 1, r/2], sines with their signs [.., 1, 2, r/2].
    """

    cosines: Tensor
    sines: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x with its first r dimensions turned, the first half of them against the second."""
        half = self.cosines.shape[-1]
        turning = x if x.shape[-1] == 2 * half else x[..., : 2 * half]
        pairs = turning.view(*turning.shape[:-1], 2, half)
        turned = torch.addcmul(pairs * self.cosines, pairs.flip(-2), self.sines).flatten(-2).to(x.dtype)
        return turned if turning is x else torch.cat((turned, x[..., 2 * half :]), -1)


class Rotary:
    """Makes the rotations of a model's steps."""

    def __init__(self, rope: Rope, device: torch.device) -> None:
        frequencies, self._scale = inverse_frequencies(rope)
        self._frequencies = frequencies.to(device)
        self._sign = torch.tensor([[-1.0], [1.0]]).to(device)

    def __call__(self, step: Step) -> Rotation:
        if not step.decode:
            positions = torch.arange(step.window, device=self._frequencies.device, dtype=torch.float32)
            angles = positions[:, None] * self._frequencies
        elif step.positions is None:
            assert step.position is not None
            angles = self._frequencies * float(step.position)
        else:
            angles = step.positions[:, None].float() * self._frequencies
        cosines, sines = angles.cos()[..., None, None, :], angles.sin()[..., None, None, :] * self._sign
        if self._scale != 1:
            cosines, sines = cosines * self._scale, sines * self._scale
        return Rotation(cosines, sines)


def inverse_frequencies(rope: Rope) -> tuple[Tensor, float]:
    """Radians per position of each pair [r/2], float32, and the factor of cosines and sines."""
    exponents = torch.arange(0, rope.rotary_size, 2, dtype=torch.int64).float() / rope.rotary_size
    if rope.kind == "yarn":
        return _yarn(rope, rope.theta**exponents)
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        assert rope.factor is not None
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        frequencies = _llama3(rope, frequencies)
    return frequencies, 1.0


def _llama3(rope: Rope, frequencies: Tensor) -> Tensor:
    """Llama 3.1's: long waves are stretched by `factor`, short ones are kept, those between are interpolated."""
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    length = rope.original_max_position_embeddings
    assert factor is not None and low is not None and high is not None and length is not None  # noqa: PT018
    waves = 2 * math.pi / frequencies
    smooth = (length / waves - low) / (high - low)
    between = (1 - smooth) * frequencies / factor + smooth * frequencies
    stretched = torch.where(waves > length / low, frequencies / factor, between)
    return torch.where(waves < length / high, frequencies, stretched)


def _yarn(rope: Rope, waves: Tensor) -> tuple[Tensor, float]:
    """YaRN's (arXiv 2309.00071): a ramp from kept to stretched frequencies, and a temperature of attention."""
    factor, length, size = rope.factor, rope.original_max_position_embeddings, rope.rotary_size
    assert factor is not None and length is not None  # noqa: PT018

    def dimension(rotations: float) -> float:
        """The pair that turns so many times within the original length."""
        return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast or 32), dimension(rope.beta_slow or 1)
    if rope.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high += 0.001 if low == high else 0
    kept = 1 - ((torch.arange(size // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return 1.0 / (factor * waves) * (1 - kept) + 1.0 / waves * kept, _yarn_scale(rope)


def _yarn_scale(rope: Rope) -> float:
    def scale(weight: float = 1.0) -> float:
        assert rope.factor is not None
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scale(rope.mscale) / scale(rope.mscale_all_dim)
    return scale()
