"""Fills a model part: each rank reads only its own slices, from safetensors files or from a seed.

Hugging Face's GPT-2 stores Conv1D weights as [inputs, outputs]; `Linear` holds [outputs, inputs]. `c_attn` is Q|K|V
side by side in its output columns, so a shard takes three ranges of it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gpt_parallel.engine.gpt2 import GPT2
from gpt_parallel.engine.tensor_parallel import Shard
from gpt_parallel.spec import Architecture, ModelSpec

# read(tensor name, dimension to cut, ranges along it) -> the ranges, concatenated
Read = Callable[[str, int, Sequence[range]], Tensor]


def load(model: GPT2, spec: ModelSpec, shard: Shard) -> None:
    """Fill every parameter of `model`, whose sizes are those of `shard`."""
    read = _random_reader(spec) if spec.weights == "random" else _file_reader(spec)
    for name, parameter in model.named_parameters():
        source, dimension, ranges = _slices(name, spec.architecture, shard)
        value = read(source, dimension, ranges)
        parameter.copy_(value.t() if _is_conv1d(name) else value)


def _is_conv1d(name: str) -> bool:
    return name.startswith("h.") and name.endswith(".weight") and ".ln_" not in name


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

    def read(name: str, dimension: int, ranges: Sequence[range]) -> Tensor:
        # The file is opened anew for each tensor: closing drops its mapped pages from this rank's resident memory.
        key = spec.key_prefix + name
        with safe_open(file_of[key], framework="pt") as stored:
            tensor = stored.get_slice(key)
            if not ranges:
                return torch.clone(tensor[:])
            parts = [tensor[..., r.start : r.stop] if dimension == -1 else tensor[r.start : r.stop] for r in ranges]
            return torch.cat(parts, dim=dimension)

    return read


def _random_reader(spec: ModelSpec) -> Read:
    def read(name: str, dimension: int, ranges: Sequence[range]) -> Tensor:
        tensor = random_tensor(name, spec.architecture, spec.seed)
        if not ranges:
            return tensor
        return torch.cat([tensor.narrow(dimension, r.start, len(r)) for r in ranges], dim=dimension)

    return read


def random_tensor(name: str, shape: Architecture, seed: int) -> Tensor:
    """A stored tensor's seeded values, float32: a function of its name and the seed alone, so all layouts agree.

    Not a fresh GPT-2's distribution: that repeats one token for ever, and would hide errors. Here biases and norms are
    random too, and blocks and positions weigh enough that every one of them changes the tokens.
    """
    size = _stored_shape(name, shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    values = torch.empty(size)
    half_width = math.sqrt(3) * _standard_deviation(name, shape)
    values.uniform_(-half_width, half_width, generator=generator)
    return values.add_(1) if ".ln_" in f".{name}" and name.endswith(".weight") else values


def _standard_deviation(name: str, shape: Architecture) -> float:
    if _is_conv1d(name):
        return 1.5 / math.sqrt(shape.n_embd)
    return 0.1 if name == "wpe.weight" or ".ln_" in f".{name}" else 0.02


def _stored_shape(name: str, shape: Architecture) -> tuple[int, ...]:
    width, inner = shape.n_embd, shape.n_inner
    kind = ".".join(name.split(".")[2:]) if name.startswith("h.") else name
    return {
        "wte.weight": (shape.vocab_size, width),
        "wpe.weight": (shape.n_positions, width),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "mlp.c_fc.weight": (width, inner),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (inner, width),
    }.get(kind, (width,))
