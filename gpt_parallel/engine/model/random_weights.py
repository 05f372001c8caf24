"""Seeded random weights: what a model is made of where no trained ones are used. The judge uses the same values."""

import hashlib
import math

import torch
from torch import Tensor

from gpt_parallel.schema.model import Architecture


def is_conv1d(name: str) -> bool:
    return name.startswith("h.") and name.endswith(".weight") and ".ln_" not in name


def random_tensor(name: str, shape: Architecture, seed: int, buffer: Tensor | None = None) -> Tensor:
    """A stored tensor's seeded values, float32: a function of its name and the seed alone, so all layouts agree.

    Not a fresh GPT-2's distribution: that repeats one token for ever, and would hide errors. Here biases and norms are
    random too, and blocks and positions weigh enough that every one of them changes the tokens. The values are put into
    `buffer` if one is given: one-dimensional, float32, long enough.
    """
    size = shape.tensor_shapes[name]
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(size) if buffer is None else buffer[: math.prod(size)].view(size)
    half_width = math.sqrt(3) * _standard_deviation(name, shape)
    values.uniform_(-half_width, half_width, generator=generator)
    return values.add_(1) if ".ln_" in f".{name}" and name.endswith(".weight") else values


def _standard_deviation(name: str, shape: Architecture) -> float:
    if is_conv1d(name):
        return 1.5 / math.sqrt(shape.n_embd)
    return 0.02 if name == "wte.weight" else 0.1
