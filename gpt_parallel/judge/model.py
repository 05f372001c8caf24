"""transformers' model of a `ModelSpec`, in float32, with weights as the run's number type holds them."""

from typing import Any

import torch
from transformers.models.gpt2.configuration_gpt2 import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel

from gpt_parallel.engine.weights import random_tensor
from gpt_parallel.model_spec import ModelSpec
from gpt_parallel.spec import Dtype


def load_model(spec: ModelSpec, dtype: Dtype, device: torch.device) -> Any:
    """Weights are rounded to `dtype` once; all that is computed of them is float32, so only the run rounds more."""
    common: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if spec.weights == "checkpoint":
        model = GPT2LMHeadModel.from_pretrained(spec.directory, local_files_only=True, use_safetensors=True, **common)
    else:
        shape = spec.architecture
        tensors = {f"transformer.{name}": random_tensor(name, shape, spec.seed) for name in shape.tensor_shapes}
        config = GPT2Config(**shape.model_dump(), bos_token_id=0, eos_token_id=0)
        model = GPT2LMHeadModel.from_pretrained(None, config=config, state_dict=tensors, **common)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    model.to(device)  # type: ignore[arg-type]
    model.train(False)
    return model
