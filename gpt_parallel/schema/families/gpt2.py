"""GPT-2: its configuration as Hugging Face writes it, its stored tensors, and the scale of its seeded weights."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.families.names import GPT2_NAMES
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.model import Architecture, Size

# Keys of config.json, and the only value of each that the engine computes.
_ONLY = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


class _Config(Frozen):
    """The fields of a GPT-2's `config.json` that define its computation."""

    n_layer: Annotated[int, Field(strict=True, gt=0, le=10_000)]
    n_head: Size
    n_embd: Size
    n_inner: Size
    vocab_size: Size
    n_positions: Size
    layer_norm_epsilon: Annotated[float, Field(strict=True, gt=0, le=1)] = 1e-5
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"] = "gelu_new"

    @validate_model(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


def _from_config(config: Mapping[str, Any]) -> Architecture:
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise SpecError(f"{key} = {quoted(config[key])} is not supported; only {value!r} is")
    fields = {name: config[name] for name in _Config.model_fields if config.get(name) is not None}
    if isinstance(fields.get("n_embd"), int):
        fields.setdefault("n_inner", 4 * fields["n_embd"])
    return Architecture.model_validate({"family": "gpt2", **_Config.model_validate(fields).model_dump()})


def _to_config(architecture: Architecture) -> dict[str, Any]:
    return {name: getattr(architecture, GPT2_NAMES.get(name, name)) for name in _Config.model_fields}


def _tensor_shapes(architecture: Architecture) -> Shapes:
    width, inner = architecture.hidden_size, architecture.mlp_size
    tensors: Shapes = {
        "wte.weight": (architecture.vocab_size, width),
        "wpe.weight": (architecture.max_positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    for layer in range(architecture.num_layers):
        for name in ("ln_1", "ln_2"):
            tensors[f"h.{layer}.{name}.weight"] = tensors[f"h.{layer}.{name}.bias"] = (width,)
        for name, rows, columns in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, inner),
            ("mlp.c_proj", inner, width),
        ):
            tensors[f"h.{layer}.{name}.weight"] = (rows, columns)
            tensors[f"h.{layer}.{name}.bias"] = (columns,)
    return tensors


def _seeded_scale(name: str, architecture: Architecture) -> tuple[float, float]:
    """The scale of seeded values. A freshly initialised GPT-2 repeats one token, which would hide errors.

    Here biases and norms are random too, and every block and position has enough weight to change the tokens.
    """
    is_weight = name.endswith(".weight")
    if ".ln_" in f".{name}":
        return (1.0 if is_weight else 0.0), 0.1
    if name.startswith("h.") and is_weight:
        return 0.0, 1.5 / math.sqrt(architecture.hidden_size)
    return 0.0, 0.02 if name == "wte.weight" else 0.1


def _block_vectors(architecture: Architecture, num_heads: int, num_kv_heads: int, num_columns: int) -> int:
    """Weights of the biases of Q, K, V and the MLP's columns, and of the whole projections' biases and two norms."""
    return (num_heads + 2 * num_kv_heads) * architecture.head_size + num_columns + 6 * architecture.hidden_size


GPT2 = Family(
    name="gpt2",
    model_types=frozenset({"gpt2"}),
    from_config=_from_config,
    to_config=_to_config,
    tensor_shapes=_tensor_shapes,
    key_prefix="transformer.",
    seeded_scale=_seeded_scale,
    block_vectors=_block_vectors,
    final_vectors=lambda architecture: 2 * architecture.hidden_size,
)
