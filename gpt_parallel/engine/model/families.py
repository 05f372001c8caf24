"""The registry of model families' code."""

from collections.abc import Callable

import torch

from gpt_parallel.engine.model.gpt2 import GPT2
from gpt_parallel.engine.model.gpt_neox import GPTNeoX
from gpt_parallel.engine.model.interface import DecoderPart, Reduce
from gpt_parallel.engine.model.llama import Llama
from gpt_parallel.layout.part import Part
from gpt_parallel.schema.architecture import Architecture

MODELS: dict[str, Callable[[Architecture, Part, torch.dtype, torch.device, Reduce | None], DecoderPart]] = {
    "gpt2": GPT2,
    "gpt_neox": GPTNeoX,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), Llama),
}


def build(
    architecture: Architecture,
    part: Part,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    reduce: Reduce | None = None,
) -> DecoderPart:
    """Build a part of a model with allocated weights; `reduce` sums a row-parallel product over the tensor shards."""
    return MODELS[architecture.family](architecture, part, dtype, torch.device(device), reduce)
