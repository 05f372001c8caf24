"""Which model a run uses: its shape, and where its weights come from."""

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.frozen import Frozen, Text

# Beyond these a configuration is a mistake or an attack: tables of names and shapes are made before any weight is seen.
_Size = Annotated[int, Field(strict=True, gt=0, le=2**24)]
_MAX_PARAMETERS = 2**40


class Architecture(Frozen):
    """A GPT-2's shape, with Hugging Face's field names."""

    n_layer: Annotated[int, Field(strict=True, gt=0, le=10_000)]
    n_head: _Size
    n_embd: _Size
    n_inner: _Size
    vocab_size: _Size
    n_positions: _Size
    layer_norm_epsilon: Annotated[float, Field(strict=True, gt=0, le=1)] = 1e-5
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"] = "gelu_new"

    @validate_model(mode="after")
    def _is_possible(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        if self.num_parameters > _MAX_PARAMETERS:
            raise ValueError(
                f"n_layer {self.n_layer}, n_embd {self.n_embd}, n_inner {self.n_inner}, vocab_size {self.vocab_size} "
                f"and n_positions {self.n_positions} make {self.num_parameters:.2e} parameters; allowed: at most "
                f"{_MAX_PARAMETERS:.2e}"
            )
        return self

    @property
    def num_parameters(self) -> int:
        width, inner = self.n_embd, self.n_inner
        block = 4 * width * width + 2 * width * inner + inner + 9 * width
        return self.n_layer * block + (self.vocab_size + self.n_positions + 2) * width

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face's GPT-2 tensors, by name without prefix."""
        width, inner = self.n_embd, self.n_inner
        tensors: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, width),
            "wpe.weight": (self.n_positions, width),
            "ln_f.weight": (width,),
            "ln_f.bias": (width,),
        }
        for layer in range(self.n_layer):
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


class ModelSpec(Frozen):
    """A model and where its weights come from: safetensors files, or a seed."""

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
        return f"checkpoint {self.directory}"
