"""A machine made of facts, for tests to spoil in one place."""

import pytest

from gpt_parallel.cli.doctor.facts import DirectoryFacts, DriverFacts, Facts, GpuFacts, ModelFacts, TorchFacts

GIB = 1 << 30


def gpu(index=0, **changes):
    fields = {
        "uuid": f"GPU-{index}",
        "name": "NVIDIA H100",
        "is_visible": True,
        "compute_capability": (9, 0),
        "memory_bytes": 80 * GIB,
        "free_bytes": 79 * GIB,
        "sm_clock_mhz": 345,
        "max_sm_clock_mhz": 1980,
        "pcie": "PCIe 5.0 x16",
        "num_nvlinks": 18,
    }
    return GpuFacts(**{**fields, "index": index, **changes})


@pytest.fixture
def facts():
    """facts(...) is a healthy CPU machine with changes; facts(gpus=n) has a CUDA build and n GPUs."""

    def make(gpus=(), **changes):
        if isinstance(gpus, int):
            gpus = tuple(gpu(index) for index in range(gpus))
        torch = TorchFacts(version="2.13.0+cpu", build="CPU")
        driver = DriverFacts(error="NVML Shared Library Not Found", is_absent=True)
        if gpus:
            torch = TorchFacts(version="2.13.0", build="CUDA 13.0", cuda=(13, 0), nccl="2.28.9")
            driver = DriverFacts(version="580.65", cuda=(13, 0))
        fields = {
            "gpt_parallel": "0.1.0",
            "python": "3.12.1",
            "platform": "Linux",
            "torch": torch,
            "driver": driver,
            "gpus": gpus,
            "cuda_visible_devices": None,
            "cpu": "AMD EPYC",
            "num_cores": 4,
            "num_machine_cores": 4,
            "memory_bytes": 24 * GIB,
            "available_bytes": 20 * GIB,
            "thread_variables": {},
            "shm_bytes": 12 * GIB,
            "temporary": DirectoryFacts(path="/tmp", free_bytes=50 * GIB),
            "output": DirectoryFacts(path="reports/latest", free_bytes=50 * GIB),
            "cache": DirectoryFacts(path="/home/me/.cache", free_bytes=50 * GIB),
            "models": (ModelFacts(name="gpt2"), ModelFacts(name="qwen3-nano", has_weights=False)),
        }
        return Facts(**{**fields, **changes})

    return make
