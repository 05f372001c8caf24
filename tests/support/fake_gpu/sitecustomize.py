"""A machine that seems to have a GPU. Tests that mean CPU ranks pass on it as elsewhere:

    PYTHONPATH=tests/support/fake_gpu pytest -n 2 -m "not slow and not cuda"

Python imports this file by itself as it starts, so every process of the tests sees one GPU in NVML and a torch that is
built for CUDA. Nothing can run on it.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pynvml

UUID = "GPU-00000000-fa4e-0000-0000-000000000000"
_MEMORY = SimpleNamespace(total=80 << 30, free=79 << 30, used=1 << 30)
_ANSWERS = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlSystemGetDriverVersion": "580.65.06",
    "nvmlSystemGetCudaDriverVersion": 13000,
    "nvmlDeviceGetCount": 1,
    "nvmlDeviceGetHandleByIndex": "the GPU",
    "nvmlDeviceGetHandleByUUID": "the GPU",
    "nvmlDeviceGetName": "NVIDIA fake of an H100",
    "nvmlDeviceGetUUID": UUID,
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetMemoryInfo": _MEMORY,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=0, memory=0),
    "nvmlDeviceGetPowerUsage": 70_000,
    "nvmlDeviceGetTotalEnergyConsumption": 1_000_000,
    "nvmlDeviceGetTemperature": 30,
    "nvmlDeviceGetClockInfo": 1980,
    "nvmlDeviceGetMaxClockInfo": 1980,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetNvLinkState": 0,
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
}


def _always(answer):
    return lambda *arguments: answer


def _find_spec(name, package=None):
    """The installed torch seems to lie beside this file, where its version.py tells of CUDA."""
    spec = _true_find_spec(name, package)
    if name == "torch" and spec is not None and spec.origin == _INSTALLED.origin:
        return SimpleNamespace(name=name, origin=str(Path(__file__).parent / "torch_for_cuda" / "__init__.py"))
    return spec


for _name, _answer in _ANSWERS.items():
    setattr(pynvml, _name, _always(_answer))
_true_find_spec = importlib.util.find_spec
_INSTALLED = _true_find_spec("torch")
importlib.util.find_spec = _find_spec
