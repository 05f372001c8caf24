"""Rotary position embedding: its parameters, as `config.json` of transformers 4 or 5 has them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.frozen import Frozen

Positive = Annotated[float, Field(gt=0, strict=True)]
Count = Annotated[int, Field(strict=True, gt=0, le=2**24)]

# The parameters of each kind of scaling besides theta: (required, optional).
_PARAMETERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}
_NEUTRAL = {"partial_rotary_factor", "rope_theta", "rope_type", "type"}  # read apart from the kind's own


class Rope(Frozen):
    """The rotation of queries and keys by position. `rotary_size`: the number of a head's first dimensions that turn.

    The other names and their meaning are transformers'. "dynamic" scaling begins beyond a model's positions, to which
    requests are limited here, so within them it is "default".
    """

    kind: Literal["default", "linear", "dynamic", "llama3", "yarn"] = "default"
    theta: Positive = 10_000.0
    rotary_size: Count
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Count | None = None
    attention_factor: Positive | None = None
    beta_fast: Positive | None = None
    beta_slow: Positive | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None

    @validate_model(mode="after")
    def _is_possible(self) -> Self:
        if self.rotary_size % 2:
            raise ValueError(f"a rotary size of {self.rotary_size} is not even")
        required, optional = _PARAMETERS[self.kind]
        for name in required:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing, which rope_type {self.kind!r} needs")
        own = {"kind", "theta", "rotary_size", *required, *optional}
        for name in type(self).model_fields:
            if name not in own and getattr(self, name) is not None:
                raise ValueError(f"{name} is no parameter of rope_type {self.kind!r}")
        if self.kind == "llama3" and (self.high_freq_factor or 0) <= (self.low_freq_factor or 0):
            raise ValueError("high_freq_factor must be greater than low_freq_factor")
        return self

    def to_config(self, head_size: int) -> dict[str, Any]:
        """`rope_parameters` of a `config.json`."""
        given = {name: getattr(self, name) for names in _PARAMETERS[self.kind] for name in names}
        fields = {name: value for name, value in given.items() if value is not None}
        if self.rotary_size != head_size:
            fields["partial_rotary_factor"] = (self.rotary_size + 0.5) / head_size  # of which the whole number counts
        return {"rope_type": self.kind, "rope_theta": self.theta, **fields}


def rope_of(config: Mapping[str, Any], head_size: int, max_positions: int, fraction: float = 1.0) -> Rope:
    """The rotation that a `config.json` describes by `rope_parameters`, or by `rope_theta` and `rope_scaling`.

    `fraction` of a head turns unless the configuration says otherwise. Raises SpecError or ValidationError for what is
    not computed.
    """
    where = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    given = config.get(where) or {}
    if not isinstance(given, Mapping):
        raise SpecError(f"{where} = {quoted(given)} is not an object")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in list(_PARAMETERS):
        raise SpecError(f"{where}: rope_type {quoted(kind)} is not supported; only {', '.join(_PARAMETERS)} are")
    required, optional = _PARAMETERS[kind]
    if unknown := sorted(set(given) - {*required, *optional} - _NEUTRAL):
        raise SpecError(f"{where}: {quoted(unknown[0])} is not supported with rope_type {kind!r}")
    fields = {name: given[name] for name in (*required, *optional) if given.get(name) is not None}
    if "original_max_position_embeddings" in required:
        fields.setdefault("original_max_position_embeddings", max_positions)
    theta = given.get("rope_theta", config.get("rope_theta"))
    part = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    part = fraction if part is None else part
    if not isinstance(part, int | float) or isinstance(part, bool) or not 0 < part <= 1:
        raise SpecError(f"partial_rotary_factor = {quoted(part)} is not a number above 0 and up to 1")
    return Rope.model_validate(
        {"kind": kind, "theta": 10_000.0 if theta is None else theta, "rotary_size": int(head_size * part), **fields}
    )
