"""The main program of a rank's process, with the arguments RUN_DIRECTORY EVENT_FD PARENT_PID [CORE,CORE…].

A fork of `fork_server.py` runs it, or `python -m gpt_parallel.engine.process.worker` where forking is not possible.
RANK and LOCAL_RANK come from the environment, as under torchrun. The job is `job.json` in the run directory; on SIGUSR1
the stacks of all threads are written to `rank_<n>.stacks` there.
"""

import ctypes
import faulthandler
import os
import platform
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_parallel.base.warning_filters import print_warnings
from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.engine.process.title import show_as, title_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpt_parallel.schema.result import RankReport
    from gpt_parallel.schema.run import Job

    Run = Callable[[Job, int, Path, StatusPipe], RankReport]

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(arguments: list[str], run: "Run | None" = None) -> int:
    """Run the rank's job and deliver its report. `run` replaces the engine's job function."""
    os.umask(0o077)  # for the files of the run
    print_warnings()
    directory, descriptor, parent, *cores = arguments
    end_with_parent()
    if os.getppid() != int(parent):
        return 1  # the parent ended before the line above
    pinned = tuple(int(core) for core in cores[0].split(",")) if cores else ()
    if pinned:
        os.sched_setaffinity(0, pinned)
    pipe = StatusPipe(int(descriptor))
    rank = int(os.environ["RANK"])
    with (Path(directory) / f"rank_{rank}.stacks").open("wb") as stacks:
        faulthandler.register(signal.SIGUSR1, stacks)
        return _report(Path(directory), rank, pinned, pipe, run or _run_rank)


def _report(directory: Path, rank: int, pinned: tuple[int, ...], pipe: StatusPipe, run: "Run") -> int:
    try:
        pipe.enter("start")
        # Imported here, so that without a server torch's threads are made after the process is pinned.
        from gpt_parallel.schema.run import Job

        job = Job.model_validate_json((directory / "job.json").read_bytes())
        show_as(title_of(job, rank))
        report = run(job, rank, directory, pipe)
        pipe.deliver(report.placed(cores=pinned, host=platform.node()))
    except BaseException as error:
        pipe.fail(error)
        return 1
    return 0


def _run_rank(job: "Job", rank: int, directory: Path, pipe: StatusPipe) -> "RankReport":
    from gpt_parallel.engine.job import run_job

    return run_job(job, rank, int(os.environ["LOCAL_RANK"]), str(directory / "store"), pipe)


def end_with_parent() -> None:
    """Make the kernel kill this rank when its parent ends, even if the rank is stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
