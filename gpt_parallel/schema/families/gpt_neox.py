"""GPT-NeoX and Pythia: partial rotations, and attention and MLP that may both read the block's input."""

import math
from collections.abc import Mapping
from typing import Any

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.architecture import ActivationName, Architecture, Epsilon, NumLayers, Size
from gpt_parallel.schema.families.config_fields import flag, unexpected
from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.rope import rope_of

_OUR_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_size",
    "max_position_embeddings": "max_positions",
    "layer_norm_eps": "norm_epsilon",
    "hidden_act": "activation",
}
_ATTENTION_BIAS = {"qkv_bias", "output_bias"}


class _Config(Frozen):
    """The sizes in a `config.json`."""

    num_hidden_layers: NumLayers
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    layer_norm_eps: Epsilon = 1e-5
    hidden_act: ActivationName = "gelu"


def _from_config(config: Mapping[str, Any]) -> Architecture:
    sizes = _Config.model_validate(
        {name: config[name] for name in _Config.model_fields if config.get(name) is not None}
    )
    head_size, rest = divmod(sizes.hidden_size, sizes.num_attention_heads)
    if rest:
        raise SpecError(f"hidden_size {sizes.hidden_size} is not a multiple of {sizes.num_attention_heads} heads")
    fraction = config.get("rotary_pct", 0.25)
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise SpecError(f"rotary_pct = {quoted(fraction)} is not a number above 0 and up to 1")
    theta = {"rope_theta": config.get("rotary_emb_base", config.get("rope_theta"))}
    switches = {"parallel_residual"} if flag(config, "use_parallel_residual", True) else set()
    switches |= _ATTENTION_BIAS if flag(config, "attention_bias", True) else set()
    return Architecture.model_validate(
        {
            **{_OUR_NAMES.get(name, name): value for name, value in sizes.model_dump().items()},
            "family": "gpt_neox",
            "tied_head": flag(config, "tie_word_embeddings", False),
            "rope": rope_of({**config, **theta}, head_size, sizes.max_position_embeddings, fraction),
            "switches": sorted(switches),
        }
    )


def _to_config(architecture: Architecture) -> dict[str, Any]:
    assert architecture.rope is not None
    return {
        **{name: getattr(architecture, _OUR_NAMES.get(name, name)) for name in _Config.model_fields},
        "rope_parameters": {"partial_rotary_factor": 1.0, **architecture.rope.to_config(architecture.head_size)},
        "tie_word_embeddings": architecture.tied_head,
        "use_parallel_residual": "parallel_residual" in architecture.switches,
        "attention_bias": "qkv_bias" in architecture.switches,
    }


def _problem(architecture: Architecture) -> str | None:
    heads, switches = architecture.num_heads, set(architecture.switches)
    if architecture.num_kv_heads != heads or heads * architecture.head_size != architecture.hidden_size:
        return "a GPT-NeoX has as many key and value heads as query heads, of hidden_size ÷ num_heads each"
    if switches & _ATTENTION_BIAS and not switches >= _ATTENTION_BIAS:
        return "switches: a GPT-NeoX has both or none of output_bias and qkv_bias"
    return unexpected(architecture, switches={"parallel_residual", *_ATTENTION_BIAS}, rotates=True)


def _tensor_shapes(architecture: Architecture) -> Shapes:
    width, inner = architecture.hidden_size, architecture.mlp_size
    tensors: Shapes = {"embed_in.weight": (architecture.vocab_size, width)}
    if not architecture.tied_head:
        tensors["embed_out.weight"] = (architecture.vocab_size, width)
    norms = ["final_layer_norm"]
    for layer in range(architecture.num_layers):
        block = f"layers.{layer}"
        norms += [f"{block}.input_layernorm", f"{block}.post_attention_layernorm"]
        for name, rows, columns, has_bias in (
            ("attention.query_key_value", 3 * width, width, "qkv_bias" in architecture.switches),
            ("attention.dense", width, width, "output_bias" in architecture.switches),
            ("mlp.dense_h_to_4h", inner, width, True),
            ("mlp.dense_4h_to_h", width, inner, True),
        ):
            tensors[f"{block}.{name}.weight"] = (rows, columns)
            if has_bias:
                tensors[f"{block}.{name}.bias"] = (rows,)
    for norm in norms:
        tensors[f"{norm}.weight"] = tensors[f"{norm}.bias"] = (width,)
    return tensors


def _seeded_scale(name: str, architecture: Architecture) -> tuple[float, float]:
    """Every part has enough weight to change the tokens; see GPT-2's."""
    if "norm" in name or name.endswith(".bias"):
        return (1.0 if name.endswith("norm.weight") else 0.0), 0.1
    return 0.0, 1.5 / math.sqrt(architecture.hidden_size) if name.startswith("layers.") else 0.02


def _block_vectors(architecture: Architecture, num_heads: int, num_kv_heads: int, num_columns: int) -> int:
    width = architecture.hidden_size
    attention = (num_heads + 2 * num_kv_heads) * architecture.head_size + width
    return 5 * width + num_columns + (attention if "qkv_bias" in architecture.switches else 0)


GPT_NEOX = Family(
    name="gpt_neox",
    from_config=_from_config,
    to_config=_to_config,
    problem=_problem,
    tensor_shapes=_tensor_shapes,
    key_prefix="gpt_neox.",
    seeded_scale=_seeded_scale,
    block_vectors=_block_vectors,
    final_vectors=lambda architecture: 2 * architecture.hidden_size,
    head_name="embed_out.weight",
)
