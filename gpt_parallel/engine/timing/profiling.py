"""A torch profiler trace of one pass, as JSON that Chrome and Perfetto open, and its top operators as text.

It is a pass of its own because profiling slows generation down.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gpt_parallel.base.atomic_files import write_atomically

_NUM_OPERATORS = 15


def profile_pass(run: Callable[[], object], directory: Path, rank: int, device: torch.device) -> None:
    """Write `rank_<n>.json` and `rank_<n>.txt` to the directory, replacing those of an earlier run."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        run()
        if on_cuda:
            torch.cuda.synchronize(device)
    partial = directory / f".rank_{rank}.json.{secrets.token_hex(8)}"
    profiler.export_chrome_trace(str(partial))
    partial.replace(directory / f"rank_{rank}.json")
    order = "self_cuda_time_total" if on_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=order, row_limit=_NUM_OPERATORS, max_name_column_width=40)
    write_atomically(directory / f"rank_{rank}.txt", table + "\n")
