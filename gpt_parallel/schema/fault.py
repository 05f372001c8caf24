"""The description of an injected fault."""

from typing import Literal, get_args

from pydantic import NonNegativeInt, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.schema.frozen import Frozen

FaultPhase = Literal["connect", "load", "verification", "warmup", "round", "decode", "finish"]


FaultAction = Literal[
    "raise", "sigkill", "sigstop", "hang", "hang_in_collective", "exit_0", "exit_3", "nan_logits", "out_of_memory"
]


class FaultSpec(Frozen):
    """The action of a rank in a phase: within the recorded pass (`verification`) or the first round (`decode`), or at
    the start of another phase.

    A run with a fault is never a measurement.
    """

    phase: FaultPhase
    rank: NonNegativeInt
    action: FaultAction

    @validate_model(mode="after")
    def _can_be(self) -> Self:
        if self.action == "nan_logits" and self.phase not in ("verification", "warmup", "round", "decode"):
            raise ValueError(f"phase {self.phase} computes no logits; allowed: verification, warmup, round, decode")
        if self.action == "hang_in_collective" and self.phase == "connect":
            raise ValueError("there are no collectives before ranks are connected; use another phase")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """PHASE:RANK:ACTION, as `str` gives it. Raises SpecError."""
        phase, _, rest = text.partition(":")
        rank, _, action = rest.partition(":")
        if phase in get_args(FaultPhase) and rank.isascii() and rank.isdigit() and action in get_args(FaultAction):
            try:
                return cls.model_validate({"phase": phase, "rank": rank, "action": action})
            except ValidationError as error:
                raise SpecError.from_validation(error, prefix=f"fault {quoted(text)}: ") from error
        raise SpecError(
            f"fault {quoted(text)}: must be PHASE:RANK:ACTION; phases: {', '.join(get_args(FaultPhase))}; "
            f"actions: {', '.join(get_args(FaultAction))}"
        )

    def __str__(self) -> str:
        return f"{self.phase}:{self.rank}:{self.action}"
