"""Seeded random weights: what a model is made of where no trained ones are used. The judge uses the same values."""

import hashlib
import math

import torch
from torch import Tensor

from gpt_parallel.schema.families.registry import family_of, tensor_shapes
from gpt_parallel.schema.model import Architecture


def random_tensor(name: str, architecture: Architecture, seed: int, buffer: Tensor | None = None) -> Tensor:
    """A stored tensor's seeded values, float32: a function of its name and the seed alone, so all layouts agree.

    Uniform with the centre and the standard deviation that its family gives. The values are put into `buffer` if one is
    given: one-dimensional, float32, long enough.
    """
    size = tensor_shapes(architecture)[name]
    centre, deviation = family_of(architecture).seeded_scale(name, architecture)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(size) if buffer is None else buffer[: math.prod(size)].view(size)
    half_width = math.sqrt(3) * deviation
    values.uniform_(-half_width, half_width, generator=generator)
    return values.add_(centre) if centre else values
