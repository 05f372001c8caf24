"""What a process on another machine says of itself when it calls in."""

from pydantic import NonNegativeInt, PositiveInt

from gpt_parallel.schema.frozen import Frozen


class Hello(Frozen):
    """What a process that is to be a rank says of itself. `rank`, `size`, `local_rank`: the launcher's count.

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
