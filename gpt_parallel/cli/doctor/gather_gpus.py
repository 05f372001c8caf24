"""Gathers facts about GPUs through NVML, without torch and without a CUDA context."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

from gpt_parallel.cli.doctor.facts import DriverFacts, GpuFacts, GpuProcess
from gpt_parallel.launch.devices import open_nvml, select_visible

Value = TypeVar("Value")


def gather_gpus() -> tuple[DriverFacts, tuple[GpuFacts, ...]]:
    """The driver and every GPU, including those that CUDA_VISIBLE_DEVICES hides."""
    with open_nvml() as (nvml, error):
        if nvml is None:
            import pynvml

            is_absent = isinstance(error, pynvml.NVMLError_LibraryNotFound)
            return DriverFacts(error=str(error), is_absent=is_absent), ()
        try:
            return _gather_driver(nvml), _gather_all(nvml)
        except nvml.NVMLError as error:
            return DriverFacts(error=str(error)), ()


def _gather_driver(nvml: Any) -> DriverFacts:
    cuda = _query(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    return DriverFacts(
        version=_query(nvml, nvml.nvmlSystemGetDriverVersion),
        cuda=(cuda // 1000, cuda % 1000 // 10) if cuda else None,
    )


def _gather_all(nvml: Any) -> tuple[GpuFacts, ...]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
    visible = set(_visible(uuids))
    return tuple(
        _gather_one(nvml, index, handle, uuid, uuid in visible)
        for index, (handle, uuid) in enumerate(zip(handles, uuids, strict=True))
    )


def _visible(uuids: list[str]) -> list[str]:
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    return uuids if variable is None else select_visible(uuids, uuids, variable)


def _gather_one(nvml: Any, index: int, handle: Any, uuid: str, is_visible: bool) -> GpuFacts:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    generation = _query(nvml, nvml.nvmlDeviceGetCurrPcieLinkGeneration, handle)
    width = _query(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle)
    return GpuFacts(
        index=index,
        uuid=uuid,
        name=nvml.nvmlDeviceGetName(handle),
        is_visible=is_visible,
        compute_capability=nvml.nvmlDeviceGetCudaComputeCapability(handle),
        memory_bytes=memory.total,
        free_bytes=memory.free,
        sm_clock_mhz=_query(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
        max_sm_clock_mhz=_query(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
        pcie=f"PCIe {generation}.0 x{width}" if generation and width else None,
        num_nvlinks=_num_nvlinks(nvml, handle),
        processes=tuple(
            GpuProcess(pid=process.pid, name=_process_name(process.pid), memory_bytes=process.usedGpuMemory)
            for process in _query(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
        ),
    )


def _num_nvlinks(nvml: Any, handle: Any) -> int | None:
    """Active links; None where the GPU has no NVLink."""
    states = [_query(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(nvml.NVML_NVLINK_MAX_LINKS)]
    known = [state for state in states if state is not None]
    return sum(known) if known else None


def _process_name(pid: int) -> str:
    import psutil

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "unknown program"  # another container's, or just ended


def _query(nvml: Any, function: Callable[..., Value], *arguments: Any) -> Value | None:
    """The function's value, or None if the device or driver does not provide it."""
    try:
        return function(*arguments)
    except nvml.NVMLError:
        return None
