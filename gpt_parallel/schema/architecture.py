"""A decoder's architecture, in the same terms for all model families."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.families.names import in_our_names
from gpt_parallel.schema.frozen import Frozen, Text
from gpt_parallel.schema.rope import Rope

# Limits against mistakes and attacks: tables of names and shapes are built before any weight is read.
Size = Annotated[int, Field(strict=True, gt=0, le=2**24)]
NumLayers = Annotated[int, Field(strict=True, gt=0, le=10_000)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=1)]
_MAX_PARAMETERS = 2**40

# transformers' names of the activations without parameters of their own.
ActivationName = Literal[
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
]


class Architecture(Frozen):
    """A decoder's sizes, and what its family computes with them.

    `num_kv_heads` defaults to `num_heads`, `head_size` to `hidden_size` ÷ `num_heads`, `mlp_size` to 4 · `hidden_size`.
    `gated_mlp`: two matrices into the MLP's inner columns, one of them a gate, instead of one. With `rope` positions
    are rotations, without it a learned table. `sliding_layers` attend to the last `sliding_window` tokens only.
    `switches`: those of the family's own options that are on.
    The configuration names of GPT-2 (such as `n_embd`) are accepted as well; results of earlier versions have them.
    """

    family: Text = "gpt2"
    num_layers: NumLayers
    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size
    head_size: Size
    mlp_size: Size
    vocab_size: Size
    max_positions: Size
    norm_epsilon: Epsilon = 1e-5
    activation: ActivationName = "gelu_new"
    tied_head: bool = True
    gated_mlp: bool = False
    rope: Rope | None = None
    sliding_window: Size | None = None
    sliding_layers: tuple[int, ...] = ()
    switches: tuple[str, ...] = ()

    @validate_model(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        fields = in_our_names(given)
        for name in ("sliding_layers", "switches"):  # a file's, which strict validation would refuse as a list
            if isinstance(fields.get(name), list):
                fields[name] = tuple(fields[name])
        if isinstance(fields.get("rope"), Mapping):
            with suppress(ValidationError):  # the field itself reports it
                fields["rope"] = Rope.model_validate(fields["rope"])
        hidden, heads = fields.get("hidden_size"), fields.get("num_heads")
        if heads is not None:
            fields.setdefault("num_kv_heads", heads)
        if type(hidden) is int:
            fields.setdefault("mlp_size", 4 * hidden)
            if type(heads) is int and heads > 0 and "head_size" not in fields:
                if hidden % heads:
                    raise ValueError(f"hidden_size {quoted(hidden)} is not a multiple of num_heads {quoted(heads)}")
                fields["head_size"] = hidden // heads
        return fields

    @validate_model(mode="after")
    def _is_possible(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.rope is not None and self.rope.rotary_size > self.head_size:
            raise ValueError(f"a rotary size of {self.rope.rotary_size} is larger than head_size {self.head_size}")
        layers = range(self.num_layers)
        if bool(self.sliding_layers) != (self.sliding_window is not None) or not {*self.sliding_layers} <= {*layers}:
            raise ValueError("sliding_window and sliding_layers, which must be layers of the model, go together")
        if self.num_weights > _MAX_PARAMETERS:
            raise ValueError(
                f"{self.num_layers} layers, hidden_size {self.hidden_size}, mlp_size {self.mlp_size}, vocab_size "
                f"{self.vocab_size} and {self.max_positions} positions make {self.num_weights:.2e} weights; allowed: "
                f"at most {_MAX_PARAMETERS:.2e}"
            )
        return self

    @property
    def query_head_weights(self) -> int:
        """Weights of a query head: rows of Q, columns of the projection."""
        return 2 * self.head_size * self.hidden_size

    @property
    def kv_head_weights(self) -> int:
        """Weights of a key and value head: rows of K and V."""
        return 2 * self.head_size * self.hidden_size

    @property
    def mlp_column_weights(self) -> int:
        """Weights of one of the MLP's inner columns: a row of each matrix into it, a column of the one out of it."""
        return (3 if self.gated_mlp else 2) * self.hidden_size

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices, which determine its time. 4·D² + 2·D·F for GPT-2."""
        attention = self.num_heads * self.query_head_weights + self.num_kv_heads * self.kv_head_weights
        return attention + self.mlp_size * self.mlp_column_weights

    @property
    def embedding_weights(self) -> int:
        """Weights of the first stage's tables: a row for each token and for each learned position."""
        return (self.vocab_size + (0 if self.rope else self.max_positions)) * self.hidden_size

    @property
    def num_weights(self) -> int:
        """Weights of all matrices and tables, without norms and biases."""
        head = 0 if self.tied_head else self.vocab_size * self.hidden_size
        return self.num_layers * self.block_weights + self.embedding_weights + head

    def window_of(self, layer: int) -> int | None:
        """The number of tokens that a layer attends to at most; None if it attends to all."""
        return self.sliding_window if layer in self.sliding_layers else None
