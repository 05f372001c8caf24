"""Llama and the families of its form, Mistral, Qwen2 and Qwen3: RMS norms, rotations, grouped heads, a gated MLP."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.architecture import ActivationName, Architecture, Epsilon, NumLayers, Size
from gpt_parallel.schema.families.config_fields import flag, refuse_other_values, unexpected
from gpt_parallel.schema.families.family import Family, Shapes
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.rope import rope_of

# What other models of this form have, and transformers' classes of these families do not compute.
_ONLY = {
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "original_max_position_embeddings")),
    **dict.fromkeys(("num_experts", "num_local_experts", "no_rope_layers", "attention_multiplier")),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "partial_rotary_factor"), 1.0),
}
_OUR_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_size",
    "intermediate_size": "mlp_size",
    "max_position_embeddings": "max_positions",
    "rms_norm_eps": "norm_epsilon",
    "hidden_act": "activation",
}

Windows = tuple[int | None, tuple[int, ...]]  # the window, and the layers that have it


class _Config(Frozen):
    """The sizes in a `config.json`."""

    num_hidden_layers: NumLayers
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: Epsilon = 1e-6
    hidden_act: ActivationName = "silu"


@dataclass(frozen=True)
class _Form:
    """What distinguishes one of these families: defaults of its fields, switches that are always on, and windows.

    `biases`: fields of `config.json` that are yes or no, and the switches that they turn on.
    """

    name: str
    windows: Callable[[Mapping[str, Any], int], Windows]
    windows_config: Callable[[Architecture], dict[str, Any]]
    defaults: Mapping[str, Any]
    always: tuple[str, ...] = ()
    biases: tuple[tuple[str, tuple[str, ...]], ...] = ()


def _from_config(form: _Form, config: Mapping[str, Any]) -> Architecture:
    refuse_other_values(config, {key: value for key, value in _ONLY.items() if config.get(key) is not None})
    known = {key for key, _ in form.biases}
    refuse_other_values(config, {key: False for key in ("attention_bias", "mlp_bias", "qkv_bias") if key not in known})
    given = {name: config[name] for name in _Config.model_fields if config.get(name) is not None}
    absent = {name: value for name, value in form.defaults.items() if name not in config}
    sizes = _Config.model_validate({**_derived(given), **absent, **given})
    switches = [*form.always]
    for key, turned_on in form.biases:
        switches += turned_on if flag(config, key, False) else ()
    window, layers = form.windows(config, sizes.num_hidden_layers)
    if window is not None and type(window) is not int:
        raise SpecError(f"sliding_window = {quoted(window)} is not a number of tokens")
    if window is not None and window >= sizes.max_position_embeddings:
        window, layers = None, ()
    return Architecture.model_validate(
        {
            **{_OUR_NAMES.get(name, name): value for name, value in sizes.model_dump().items()},
            "family": form.name,
            "tied_head": flag(config, "tie_word_embeddings", False),
            "gated_mlp": True,
            "rope": rope_of(config, sizes.head_dim, sizes.max_position_embeddings),
            "sliding_window": window if layers else None,
            "sliding_layers": layers,
            "switches": sorted(switches),
        }
    )


def _derived(given: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that follow from others where a configuration has none or null."""
    heads, width = given.get("num_attention_heads"), given.get("hidden_size")
    derived = {} if heads is None else {"num_key_value_heads": heads}
    if type(heads) is int and type(width) is int and heads > 0:
        if width % heads and "head_dim" not in given:
            raise SpecError(f"hidden_size {quoted(width)} is not a multiple of num_attention_heads {quoted(heads)}")
        derived["head_dim"] = width // heads
    return derived


def _to_config(form: _Form, architecture: Architecture) -> dict[str, Any]:
    assert architecture.rope is not None
    return {
        **{name: getattr(architecture, _OUR_NAMES.get(name, name)) for name in _Config.model_fields},
        "rope_parameters": architecture.rope.to_config(architecture.head_size),
        "tie_word_embeddings": architecture.tied_head,
        **{key: set(switches) <= set(architecture.switches) for key, switches in form.biases},
        **form.windows_config(architecture),
    }


def _problem(form: _Form, architecture: Architecture) -> str | None:
    possible = {*form.always, *(switch for _, switches in form.biases for switch in switches)}
    if missing := sorted(set(form.always) - set(architecture.switches)):
        return f"switches: family {form.name!r} always has {', '.join(missing)}"
    for key, switches in form.biases:
        if set(switches) & set(architecture.switches) and not set(switches) <= set(architecture.switches):
            return f"switches: family {form.name!r} has all or none of {', '.join(switches)} ({key})"
    if architecture.rope is not None and architecture.rope.rotary_size != architecture.head_size:
        return f"rope: family {form.name!r} rotates whole heads"
    if form.windows is _windows_everywhere and len(architecture.sliding_layers) not in (0, architecture.num_layers):
        return f"sliding_layers: family {form.name!r} has all layers or none"
    slides = form.windows is not _no_windows
    return unexpected(architecture, switches=possible, gated_mlp=True, rotates=True, slides=slides)


def _no_windows(config: Mapping[str, Any], num_layers: int) -> Windows:
    refuse_other_values(config, {"sliding_window": None})
    return None, ()


def _windows_everywhere(config: Mapping[str, Any], num_layers: int) -> Windows:
    refuse_other_values(config, {"layer_types": None})
    window = config.get("sliding_window", 4096)
    return window, () if window is None else tuple(range(num_layers))


def _windows_by_layer(config: Mapping[str, Any], num_layers: int) -> Windows:
    """`layer_types` names them; else those from `max_window_layers` on have one."""
    window = config.get("sliding_window", 4096) if flag(config, "use_sliding_window", False) else None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        if type(first) is not int:
            raise SpecError(f"max_window_layers = {quoted(first)} is not a number of layers")
        return window, () if window is None else tuple(range(max(first, 0), num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers or not {*kinds} <= {"full_attention", _SLIDING}:
        raise SpecError(f"layer_types = {quoted(kinds)} is not a list of full_attention and {_SLIDING} for each layer")
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == _SLIDING)
    if layers and window is None:
        raise SpecError(f"layer_types has {_SLIDING}, but use_sliding_window and sliding_window give no window")
    return window, layers


_SLIDING = "sliding_attention"


def _config_by_layer(architecture: Architecture) -> dict[str, Any]:
    layers = range(architecture.num_layers)
    return {
        "use_sliding_window": bool(architecture.sliding_layers),
        "sliding_window": architecture.sliding_window,
        "layer_types": ["full_attention" if architecture.window_of(each) is None else _SLIDING for each in layers],
    }


def _tensor_shapes(architecture: Architecture) -> Shapes:
    width, inner = architecture.hidden_size, architecture.mlp_size
    queries = architecture.num_heads * architecture.head_size
    keys = architecture.num_kv_heads * architecture.head_size
    switches = architecture.switches
    tensors: Shapes = {"embed_tokens.weight": (architecture.vocab_size, width), "norm.weight": (width,)}
    if not architecture.tied_head:
        tensors["lm_head.weight"] = (architecture.vocab_size, width)
    for layer in range(architecture.num_layers):
        block = f"layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{name}.weight"] = (width,)
        for name, rows, columns, bias in (
            ("self_attn.q_proj", queries, width, "qkv_bias"),
            ("self_attn.k_proj", keys, width, "qkv_bias"),
            ("self_attn.v_proj", keys, width, "qkv_bias"),
            ("self_attn.o_proj", width, queries, "output_bias"),
            ("mlp.gate_proj", inner, width, "mlp_bias"),
            ("mlp.up_proj", inner, width, "mlp_bias"),
            ("mlp.down_proj", width, inner, "mlp_bias"),
        ):
            tensors[f"{block}.{name}.weight"] = (rows, columns)
            if bias in switches:
                tensors[f"{block}.{name}.bias"] = (rows,)
        if "qk_norm" in switches:
            for name in ("q_norm", "k_norm"):
                tensors[f"{block}.self_attn.{name}.weight"] = (architecture.head_size,)
    return tensors


def _seeded_scale(name: str, architecture: Architecture) -> tuple[float, float]:
    """Every part has enough weight to change the tokens; see GPT-2's."""
    if name.endswith("norm.weight"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.1
    return 0.0, 1.5 / math.sqrt(architecture.hidden_size) if name.startswith("layers.") else 0.02


def _block_vectors(architecture: Architecture, num_heads: int, num_kv_heads: int, num_columns: int) -> int:
    width, size = architecture.hidden_size, architecture.head_size
    counts = {
        "qkv_bias": (num_heads + 2 * num_kv_heads) * size,
        "output_bias": width,
        "mlp_bias": 2 * num_columns + width,
        "qk_norm": 2 * size,
    }
    return 2 * width + sum(counts[switch] for switch in architecture.switches)


def _family(form: _Form) -> Family:
    return Family(
        name=form.name,
        from_config=partial(_from_config, form),
        to_config=partial(_to_config, form),
        problem=partial(_problem, form),
        tensor_shapes=_tensor_shapes,
        key_prefix="model.",
        seeded_scale=_seeded_scale,
        block_vectors=_block_vectors,
        final_vectors=lambda architecture: architecture.hidden_size,
    )


_ATTENTION_BIAS = ("attention_bias", ("qkv_bias", "output_bias"))
LLAMA = _family(
    _Form(
        name="llama",
        windows=_no_windows,
        windows_config=lambda architecture: {},
        defaults={},
        biases=(_ATTENTION_BIAS, ("mlp_bias", ("mlp_bias",))),
    )
)
MISTRAL = _family(
    _Form(
        name="mistral",
        windows=_windows_everywhere,
        windows_config=lambda architecture: {"sliding_window": architecture.sliding_window},
        defaults={"num_key_value_heads": 8},
    )
)
QWEN2 = _family(
    _Form(
        name="qwen2",
        windows=_windows_by_layer,
        windows_config=_config_by_layer,
        defaults={"num_key_value_heads": 32},
        always=("qkv_bias",),
    )
)
QWEN3 = _family(
    _Form(
        name="qwen3",
        windows=_windows_by_layer,
        windows_config=_config_by_layer,
        defaults={"num_key_value_heads": 32, "head_dim": 128},
        always=("qk_norm",),
        biases=(_ATTENTION_BIAS,),
    )
)
