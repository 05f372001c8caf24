"""Hints for values that are nearly right: other tools' names for them, and misspellings."""

from collections.abc import Iterable
from difflib import get_close_matches

# Names in use elsewhere, and what means the same here.
_SYNONYMS = {
    "fp16": "float16",
    "half": "float16",
    "f16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "gpu": "cuda",
    "nvidia": "cuda",
    "mpi": "gloo",
    "sdpa": "auto",
    "eager": "math",
    "flash_attention_2": "flash",
    "ddp": "pure_data_parallel",
    "dp": "pure_data_parallel",
    "data_parallel": "pure_data_parallel",
    "tensor_parallel": "tensor_data_hybrid",
    "tp": "tensor_data_hybrid",
    "pipeline_parallel": "pipeline_data_hybrid",
    "pp": "pipeline_data_hybrid",
    "model_parallel": "full_model_parallel",
}


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """ "; did you mean 'float16'?" where an allowed value is near, else an empty text."""
    if not isinstance(given, str) or len(given) > 100:
        return ""
    values = list(allowed)
    plain = given.strip().lower().replace("-", "_").removeprefix("torch.")
    synonym = _SYNONYMS.get(plain, plain)
    nearest = synonym if synonym in values else next(iter(get_close_matches(synonym, values, n=1)), None)
    return f"; did you mean {nearest!r}?" if nearest else ""
