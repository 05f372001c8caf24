"""Maps the configuration names of model families to the fields of `Architecture`."""

from collections.abc import Mapping
from typing import Any

GPT2_NAMES = {
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "hidden_size",
    "n_inner": "mlp_size",
    "n_positions": "max_positions",
    "layer_norm_epsilon": "norm_epsilon",
    "activation_function": "activation",
}


def in_our_names(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under `Architecture`'s names; other names are kept."""
    return {GPT2_NAMES.get(name, name): value for name, value in fields.items()}
