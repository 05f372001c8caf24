"""The first message of a rank that connects from another machine."""

from pydantic import NonNegativeInt, PositiveInt

from gpt_parallel.schema.frozen import Frozen


class Hello(Frozen):
    """A process that an external launcher started. `rank`, `size`, `local_rank`: the launcher's numbers.

    `pid` is its number among the processes of `pid_space`.
    """

    run: str
    version: str
    rank: NonNegativeInt
    size: PositiveInt
    local_rank: NonNegativeInt | None = None
    host: str
    clock: str
    pid: PositiveInt
    pid_space: str
