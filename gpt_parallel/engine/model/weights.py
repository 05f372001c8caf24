"""Loads the weights of a model part: each rank reads only its slices, from safetensors files or from a seed."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gpt_parallel.engine.model.interface import DecoderPart, Source
from gpt_parallel.engine.model.random_weights import random_tensor
from gpt_parallel.schema.families.registry import tensor_shapes
from gpt_parallel.schema.model import ModelSpec

# read(source) -> its ranges of the stored tensor one by one, each valid until the next
Read = Callable[[Source], Iterator[Tensor]]


def load(model: DecoderPart, spec: ModelSpec) -> None:
    """Fill every parameter of `model`."""
    read = _random_reader(spec) if spec.weights == "random" else _file_reader(spec)
    for target, sources in model.parameters():
        filled = 0
        for source in sources:
            stored_as = target.t() if source.transposed else target
            for part in read(source):
                stored_as.narrow(source.dimension, filled, part.shape[source.dimension]).copy_(part)
                filled += part.shape[source.dimension]
        assert filled == stored_as.shape[sources[-1].dimension], sources


def _file_reader(spec: ModelSpec) -> Read:
    assert spec.directory is not None
    paths = [Path(spec.directory) / name for name in spec.files]
    file_of = {}
    for path in paths:
        with safe_open(path, framework="pt") as stored:
            file_of.update(dict.fromkeys(stored.keys(), path))

    def read(source: Source) -> Iterator[Tensor]:
        # The file is opened anew for each tensor: closing drops its mapped pages from this rank's resident memory.
        key = spec.key(source.tensor)
        with safe_open(file_of[key], framework="pt") as stored:
            tensor = stored.get_slice(key)
            if not source.ranges:
                yield tensor[:]
            for part in source.ranges:
                yield tensor[..., part.start : part.stop] if source.dimension == -1 else tensor[part.start : part.stop]

    return read


def _random_reader(spec: ModelSpec) -> Read:
    # One buffer for all tensors: freed ones of this size would stay with the allocator and count as resident.
    buffer = torch.empty(max(math.prod(size) for size in tensor_shapes(spec.architecture).values()))

    def read(source: Source) -> Iterator[Tensor]:
        tensor = random_tensor(source.tensor, spec.architecture, spec.seed, buffer)
        if not source.ranges:
            yield tensor
        for part in source.ranges:
            yield tensor.narrow(source.dimension, part.start, len(part))

    return read
