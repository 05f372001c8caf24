"""The name that ps, top and nvidia-smi show of a process."""

import os

from gpt_parallel.schema.run import RunSpec


def show_as(title: str) -> None:
    """Show this process as "gpt_parallel: TITLE", cut to the length of its arguments.

    With more room setproctitle would write over the environment, which others read in /proc.
    """
    os.environ["SPT_NOENV"] = "1"
    from setproctitle import setproctitle

    setproctitle(f"gpt_parallel: {title}")
    del os.environ["SPT_NOENV"]


def title_of_rank(spec: RunSpec, rank: int) -> str:
    """A rank's title, such as "tensor_data_hybrid-4gpu rank 2/4"; ranks count from 0."""
    return f"{spec.name} rank {rank}/{spec.mesh.size}"
