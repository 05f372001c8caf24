"""The model of a run: its architecture, in the same terms for all families, and the origin of its weights."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.families.names import in_our_names
from gpt_parallel.schema.frozen import Frozen, Text

# Limits against mistakes and attacks: tables of names and shapes are built before any weight is read.
Size = Annotated[int, Field(strict=True, gt=0, le=2**24)]
_MAX_PARAMETERS = 2**40


class Architecture(Frozen):
    """A decoder's sizes.

    `num_kv_heads` defaults to `num_heads`, `head_size` to `hidden_size` ÷ `num_heads`, `mlp_size` to 4 · `hidden_size`.
    The configuration names of a family (such as GPT-2's `n_embd`) are accepted as well; results of earlier versions
    have them.
    """

    family: Literal["gpt2"] = "gpt2"
    num_layers: Annotated[int, Field(strict=True, gt=0, le=10_000)]
    hidden_size: Size
    num_heads: Size
    num_kv_heads: Size
    head_size: Size
    mlp_size: Size
    vocab_size: Size
    max_positions: Size
    norm_epsilon: Annotated[float, Field(strict=True, gt=0, le=1)] = 1e-5
    activation: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"] = "gelu_new"
    tied_head: bool = True

    @validate_model(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        fields = in_our_names(given)
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
        plain = self.num_kv_heads == self.num_heads and self.num_heads * self.head_size == self.hidden_size
        if self.family == "gpt2" and not (plain and self.tied_head):
            raise ValueError(
                "a GPT-2 has as many key and value heads as query heads, of hidden_size ÷ num_heads each, and a tied "
                "head"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.num_weights > _MAX_PARAMETERS:
            raise ValueError(
                f"{self.num_layers} layers, hidden_size {self.hidden_size}, mlp_size {self.mlp_size}, vocab_size "
                f"{self.vocab_size} and {self.max_positions} positions make {self.num_weights:.2e} weights; allowed: "
                f"at most {_MAX_PARAMETERS:.2e}"
            )
        return self

    @property
    def kv_group_weights(self) -> int:
        """Weights of a key and value head with its query heads: rows of Q, K and V, columns of the projection."""
        return (2 * (self.num_heads // self.num_kv_heads) + 2) * self.head_size * self.hidden_size

    @property
    def mlp_column_weights(self) -> int:
        """Weights of one of the MLP's inner columns: a row of each matrix into it, a column of the one out of it."""
        return 2 * self.hidden_size

    @property
    def block_weights(self) -> int:
        """Weights of one block's matrices, which determine its time. 4·D² + 2·D·F for GPT-2."""
        return self.num_kv_heads * self.kv_group_weights + self.mlp_size * self.mlp_column_weights

    @property
    def embedding_weights(self) -> int:
        """Weights of the first stage's tables: a row for each token and for each learned position."""
        return (self.vocab_size + self.max_positions) * self.hidden_size

    @property
    def num_weights(self) -> int:
        """Weights of all matrices and tables, without norms and biases."""
        head = 0 if self.tied_head else self.vocab_size * self.hidden_size
        return self.num_layers * self.block_weights + self.embedding_weights + head


class ModelSpec(Frozen):
    """A model and the origin of its weights: safetensors files or a seed."""

    name: Text
    architecture: Architecture
    weights: Literal["checkpoint", "random"]
    seed: NonNegativeInt = 0
    directory: Text | None = None
    files: tuple[Text, ...] = ()
    key_prefix: Text = ""

    @validate_model(mode="after")
    def _only_safetensors(self) -> Self:
        for name in self.files:
            if "/" in name or not name.endswith(".safetensors"):
                raise ValueError(f"files: {quoted(name)} is not the name of a safetensors file")
        return self

    @property
    def weights_origin(self) -> str:
        if self.weights == "random":
            return f"random (seed {self.seed})"
        prefix = self.key_prefix if self.key_prefix not in ("", "transformer.") else ""
        return f"checkpoint {self.directory}" + (f" (names after {prefix!r})" if prefix else "")
