"""transformers' model of a `ModelSpec`, in float32, with weights as the run's number type holds them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from gpt_parallel.engine.model.random_weights import random_tensor
from gpt_parallel.schema.families.registry import family_of, tensor_shapes
from gpt_parallel.schema.model import ModelSpec
from gpt_parallel.schema.run import Dtype


def load_model(spec: ModelSpec, dtype: Dtype, device: torch.device) -> Any:
    """Load the model: weights are rounded to `dtype` once, and all computation is float32."""
    common: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    family = family_of(spec.architecture)
    config = AutoConfig.for_model(family.name, **family.to_config(spec.architecture), bos_token_id=0, eos_token_id=0)
    tensors = {family.key(family.key_prefix, name): tensor for name, tensor in _tensors(spec).items()}
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind.from_pretrained(None, config=config, state_dict=tensors, **common)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    model.to(device)
    model.train(False)
    return model


def _tensors(spec: ModelSpec) -> dict[str, Tensor]:
    """The run's whole weights by Hugging Face's names, from the run's files or its seed."""
    names = tensor_shapes(spec.architecture)
    if spec.weights == "random":
        return {name: random_tensor(name, spec.architecture, spec.seed) for name in names}
    assert spec.directory is not None
    stored: dict[str, Tensor] = {}
    for file in spec.files:
        stored |= load_file(Path(spec.directory) / file)
    return {name: stored[spec.key(name)] for name in names}
