"""A rank's use of CPU and memory over its timed rounds, read before and after each round without a thread."""

import resource
import sys
import time
from pathlib import Path

import torch

from gpt_parallel.schema.telemetry import RankTelemetry

_NOT_LINUX = "this system does not provide it; Linux does, in /proc/self/smaps_rollup"
_NOT_CUDA = "the rank runs on CPU cores; torch.cuda counts memory of a GPU"


class CpuMeter:
    """`with meter:` around a timed round adds up its wall time and the CPU time of all this process's threads."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._begin, self._cpu_begin = time.monotonic(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds += time.process_time() - self._cpu_begin
        self.seconds += time.monotonic() - self._begin


def read_telemetry(meter: CpuMeter, num_cores: int, device: torch.device) -> RankTelemetry:
    """Read the telemetry after the last round, while all other ranks still hold their memory."""
    values: dict[str, int | float | str | None] = {"cpu_share": None}
    unavailable = {}
    if meter.seconds > 0:
        values["cpu_share"] = meter.cpu_seconds / (meter.seconds * num_cores)
    else:
        unavailable["cpu_share"] = "no round was timed"
    memory = _process_memory()
    for name, key in (("resident_bytes", "Rss"), ("proportional_bytes", "Pss")):
        values[name] = memory.get(key)
        if key not in memory:
            unavailable[name] = _NOT_LINUX
    if device.type == "cuda":
        values["peak_allocated_bytes"] = torch.cuda.max_memory_allocated(device)
        values["peak_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        values["device_uuid"] = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    else:
        unavailable |= dict.fromkeys(("peak_allocated_bytes", "peak_reserved_bytes", "device_uuid"), _NOT_CUDA)
    return RankTelemetry.model_validate(
        {"seconds": meter.seconds, "cpu_seconds": meter.cpu_seconds, **values, "unavailable": unavailable}
    )


def peak_memory(device: torch.device) -> int:
    """Peak bytes: allocated by torch on a GPU, resident in this process on a CPU (torch itself included)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        # Not ru_maxrss: a process inherits its parent's.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _process_memory() -> dict[str, int]:
    """Bytes of this process by the kernel's names (Rss, Pss, …); empty where the system does not provide them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in pairs}
