"""Fills a model part: each rank reads only its own slices, from safetensors files or from a seed.

Hugging Face's GPT-2 stores Conv1D weights as [inputs, outputs]; `Linear` holds [outputs, inputs]. `c_attn` is Q|K|V
side by side in its output columns, so a shard takes three ranges of it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gpt_parallel.engine.model.gpt2 import GPT2
from gpt_parallel.engine.model.random_weights import is_conv1d, random_tensor
from gpt_parallel.layout.shards import Shard
from gpt_parallel.schema.model import Architecture, ModelSpec

# read(tensor name, dimension to cut, ranges along it) -> the ranges one by one, each valid until the next
Read = Callable[[str, int, Sequence[range]], Iterator[Tensor]]


def load(model: GPT2, spec: ModelSpec, shard: Shard) -> None:
    """Fill every parameter of `model`, whose sizes are those of `shard`."""
    read = _random_reader(spec) if spec.weights == "random" else _file_reader(spec)
    for name, parameter in model.named_parameters():
        source, dimension, ranges = _slices(name, spec.architecture, shard)
        target = parameter.t() if is_conv1d(name) else parameter
        filled = 0
        for part in read(source, dimension, ranges):
            target.narrow(dimension, filled, part.shape[dimension]).copy_(part)
            filled += part.shape[dimension]
        assert filled == target.shape[dimension], name


def _slices(name: str, shape: Architecture, shard: Shard) -> tuple[str, int, Sequence[range]]:
    """Which ranges, along which dimension, of which stored tensor make up a parameter."""
    size, width = shape.head_size, shape.n_embd
    heads = range(shard.heads.start * size, shard.heads.stop * size)
    last = -1  # output columns of a weight, or the only dimension of a bias
    if name == "lm_head.weight":
        return "wte.weight", 0, [shard.vocabulary]
    if ".attn.c_attn." in name:
        return name, last, [range(part * width + heads.start, part * width + heads.stop) for part in range(3)]
    if name.endswith(".attn.c_proj.weight"):
        return name, 0, [heads]
    if ".mlp.c_fc." in name:
        return name, last, [shard.mlp_columns]
    if name.endswith(".mlp.c_proj.weight"):
        return name, 0, [shard.mlp_columns]
    return name, 0, []


def _file_reader(spec: ModelSpec) -> Read:
    assert spec.directory is not None
    paths = [Path(spec.directory) / name for name in spec.files]
    file_of = {}
    for path in paths:
        with safe_open(path, framework="pt") as stored:
            file_of.update(dict.fromkeys(stored.keys(), path))

    def read(name: str, dimension: int, ranges: Sequence[range]) -> Iterator[Tensor]:
        # The file is opened anew for each tensor: closing drops its mapped pages from this rank's resident memory.
        key = spec.key_prefix + name
        with safe_open(file_of[key], framework="pt") as stored:
            tensor = stored.get_slice(key)
            if not ranges:
                yield tensor[:]
            for part in ranges:
                yield tensor[..., part.start : part.stop] if dimension == -1 else tensor[part.start : part.stop]

    return read


def _random_reader(spec: ModelSpec) -> Read:
    # One buffer for all tensors: freed ones of this size would stay with the allocator and count as resident.
    buffer = torch.empty(max(math.prod(size) for size in spec.architecture.tensor_shapes.values()))

    def read(name: str, dimension: int, ranges: Sequence[range]) -> Iterator[Tensor]:
        tensor = random_tensor(name, spec.architecture, spec.seed, buffer)
        if not ranges:
            yield tensor
        for part in ranges:
            yield tensor.narrow(dimension, part.start, len(part))

    return read
