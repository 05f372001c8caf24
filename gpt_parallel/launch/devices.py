"""The devices of this machine, found without torch so that the parent process never creates a CUDA context."""

import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gpt_parallel.launch.torch_build import torch_build

Device = TypeVar("Device")


class Gpu(NamedTuple):
    name: str
    compute_capability: tuple[int, int]
    uuid: str = ""


def available_cores() -> tuple[int, ...]:
    """The cores this process may use (container and taskset limits included)."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@lru_cache(maxsize=1)
def cuda_devices() -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that a rank would see, given CUDA_VISIBLE_DEVICES; none if torch is not a CUDA build."""
    build = torch_build()
    if build is None or build.kind not in ("CUDA", "unknown"):
        return ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    with open_nvml() as (nvml, _):
        if nvml is None:
            return ()
        gpus = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            uuid = nvml.nvmlDeviceGetUUID(handle)
            gpus.append(Gpu(nvml.nvmlDeviceGetName(handle), tuple(capability), uuid))
        if visible is None:
            return tuple(gpus)
        return tuple(select_visible(gpus, [gpu.uuid for gpu in gpus], visible))


@contextmanager
def open_nvml() -> Iterator[tuple[Any, Exception | None]]:
    """Yield the initialised NVML module and None, or None and NVML's error if there is no NVIDIA driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield None, error
        return
    try:
        yield pynvml, None
    finally:
        pynvml.nvmlShutdown()


def select_visible(gpus: Sequence[Device], uuids: Sequence[str], visible: str) -> list[Device]:
    """Select GPUs as CUDA reads CUDA_VISIBLE_DEVICES: indices or UUID prefixes, up to the first invalid entry."""
    chosen: list[Device] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit() and int(entry) < len(gpus):
            chosen.append(gpus[int(entry)])
            continue
        matches = [gpu for gpu, uuid in zip(gpus, uuids, strict=True) if entry and uuid.startswith(entry)]
        if len(matches) != 1:
            break
        chosen.append(matches[0])
    return chosen


def cpu_name() -> str:
    """The processor's marketing name if the system reports it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
