"""Seeded random weights for runs without trained ones. The judge uses the same values."""

import hashlib
import math

import torch
from torch import Tensor

from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import family_of, tensor_shapes


def random_tensor(name: str, architecture: Architecture, seed: int, buffer: Tensor | None = None) -> Tensor:
    """A stored tensor's seeded float32 values, which depend on its name and the seed only, so all layouts agree.

    The distribution is uniform; the model family gives centre and standard deviation. With `buffer`, a one-dimensional
    float32 tensor of sufficient length, the values are written into it.
    """
    size = tensor_shapes(architecture)[name]
    centre, deviation = family_of(architecture).seeded_scale(name, architecture)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(size) if buffer is None else buffer[: math.prod(size)].view(size)
    half_width = math.sqrt(3) * deviation
    values.uniform_(-half_width, half_width, generator=generator)
    return values.add_(centre) if centre else values
