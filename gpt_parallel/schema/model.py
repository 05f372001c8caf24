"""The model of a run: its architecture and the origin of its weights."""

from typing import Literal

from pydantic import NonNegativeInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import architecture_problem, family_of
from gpt_parallel.schema.frozen import Frozen, Text


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
    def _is_of_its_family(self) -> Self:
        if problem := architecture_problem(self.architecture):
            raise ValueError(problem)
        return self

    @validate_model(mode="after")
    def _only_safetensors(self) -> Self:
        for name in self.files:
            if "/" in name or not name.endswith(".safetensors"):
                raise ValueError(f"files: {quoted(name)} is not the name of a safetensors file")
        return self

    def key(self, name: str) -> str:
        """The key of a stored tensor in the files."""
        return family_of(self.architecture).key(self.key_prefix, name)

    @property
    def weights_origin(self) -> str:
        if self.weights == "random":
            return f"random (seed {self.seed})"
        usual = family_of(self.architecture).key_prefix
        prefix = self.key_prefix if self.key_prefix not in ("", usual) else ""
        return f"checkpoint {self.directory}" + (f" (names after {prefix!r})" if prefix else "")
