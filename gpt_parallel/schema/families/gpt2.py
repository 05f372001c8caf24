"""GPT-2: its configuration as Hugging Face writes it, its stored tensors, and the scale of its seeded weights."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.schema.architecture import ActivationName, Architecture, Epsilon, NumLayers, Size
from gpt_parallel.schema.families.config_fields import flag, refuse_other_values, unexpected
from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.families.names import GPT2_NAMES
from gpt_parallel.schema.frozen import Frozen

# Keys of config.json with the only value of each that the engine computes.
_ONLY = {"add_cross_attention": False}
# Keys of config.json that are yes or no, with their default and the switch that is on where they differ from it.
_SWITCHES = {
    "scale_attn_weights": (True, "unscaled_attention"),
    "scale_attn_by_inverse_layer_idx": (False, "scaled_by_layer"),
    "reorder_and_upcast_attn": (False, "upcast_attention"),
}


class _Config(Frozen):
    """The fields of a GPT-2's `config.json` that define its computation."""

    n_layer: NumLayers
    n_head: Size
    n_embd: Size
    n_inner: Size
    vocab_size: Size
    n_positions: Size
    layer_norm_epsilon: Epsilon = 1e-5
    activation_function: ActivationName = "gelu_new"

    @validate_model(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


def _from_config(config: Mapping[str, Any]) -> Architecture:
    refuse_other_values(config, _ONLY)
    fields = {name: config[name] for name in _Config.model_fields if config.get(name) is not None}
    if isinstance(fields.get("n_embd"), int):
        fields.setdefault("n_inner", 4 * fields["n_embd"])
    return Architecture.model_validate(
        {
            **_Config.model_validate(fields).model_dump(),
            "family": "gpt2",
            "tied_head": flag(config, "tie_word_embeddings", True),
            "switches": [switch for key, (usual, switch) in _SWITCHES.items() if flag(config, key, usual) != usual],
        }
    )


def _to_config(architecture: Architecture) -> dict[str, Any]:
    config = {name: getattr(architecture, GPT2_NAMES.get(name, name)) for name in _Config.model_fields}
    for key, (usual, switch) in _SWITCHES.items():
        if switch in architecture.switches:
            config[key] = not usual
    return config if architecture.tied_head else {**config, "tie_word_embeddings": False}


def _problem(architecture: Architecture) -> str | None:
    heads, width = architecture.num_heads, architecture.hidden_size
    if architecture.num_kv_heads != heads or heads * architecture.head_size != width:
        return "a GPT-2 has as many key and value heads as query heads, of hidden_size ÷ num_heads each"
    return unexpected(architecture, switches={switch for _, switch in _SWITCHES.values()})


def _tensor_shapes(architecture: Architecture) -> Shapes:
    width, inner = architecture.hidden_size, architecture.mlp_size
    tensors: Shapes = {
        "wte.weight": (architecture.vocab_size, width),
        "wpe.weight": (architecture.max_positions, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
    }
    if not architecture.tied_head:
        tensors["lm_head.weight"] = (architecture.vocab_size, width)
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
    return 0.0, 0.02 if name in ("wte.weight", "lm_head.weight") else 0.1


def _block_vectors(architecture: Architecture, num_heads: int, num_kv_heads: int, num_columns: int) -> int:
    """Weights of the biases of Q, K, V and the MLP's columns, and of the whole projections' biases and two norms."""
    return (num_heads + 2 * num_kv_heads) * architecture.head_size + num_columns + 6 * architecture.hidden_size


GPT2 = Family(
    name="gpt2",
    from_config=_from_config,
    to_config=_to_config,
    problem=_problem,
    tensor_shapes=_tensor_shapes,
    key_prefix="transformer.",
    seeded_scale=_seeded_scale,
    block_vectors=_block_vectors,
    final_vectors=lambda architecture: 2 * architecture.hidden_size,
)
