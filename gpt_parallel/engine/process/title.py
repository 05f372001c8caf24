"""The name that ps, top and nvidia-smi show of a process."""

import os
from typing import TYPE_CHECKING

from setproctitle import setproctitle

if TYPE_CHECKING:
    from gpt_parallel.schema.run import Job


def show_as(title: str) -> None:
    """Show this process as "gpt_parallel: TITLE", cut to the length of the command line that started it.

    A process has to call this before it removes variables from its environment: setproctitle finds the command line in
    memory beside them. Without SPT_NOENV it would write over them, and others read them in /proc.
    """
    os.environ["SPT_NOENV"] = "1"
    setproctitle(f"gpt_parallel: {title}")
    del os.environ["SPT_NOENV"]


def title_of(job: "Job", rank: int) -> str:
    """The title of the process that does a job, such as "tensor_data_hybrid-4gpu rank 2/4"; ranks count from 0."""
    return "judge" if job.kind == "judge" else f"{job.spec.name} rank {rank}/{job.spec.mesh.size}"
