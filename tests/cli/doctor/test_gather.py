"""Facts are gathered from what the system says, faked at its edge."""

import os
from collections import namedtuple

import psutil
import pynvml
import pytest

from gpt_parallel.cli.doctor import gather
from gpt_parallel.cli.doctor.gather_gpus import gather_gpus
from gpt_parallel.launch.torch_build import TorchBuild

Memory = namedtuple("Memory", "total free")
Process = namedtuple("Process", "pid usedGpuMemory")


@pytest.fixture
def nvml(monkeypatch):
    """nvml(**answers) is a driver with two GPUs; an answer that is an exception is raised."""

    def driver(**changed):
        answers = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "580.65",
            "nvmlSystemGetCudaDriverVersion": 13010,
            "nvmlDeviceGetCount": 2,
            "nvmlDeviceGetName": "NVIDIA H100",
            "nvmlDeviceGetMemoryInfo": Memory(80, 79),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetClockInfo": 345,
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetCurrPcieLinkGeneration": 5,
            "nvmlDeviceGetCurrPcieLinkWidth": 16,
            "nvmlDeviceGetNvLinkState": 1,
            "nvmlDeviceGetComputeRunningProcesses": [],
            **changed,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, answering(answer))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{'ab'[handle]}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


def answering(answer):
    def function(*_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    return function


def test_gpus_are_described(nvml):
    nvml()

    driver, gpus = gather_gpus()

    assert (driver.version, driver.cuda, driver.error) == ("580.65", (13, 1), None)
    assert [(gpu.index, gpu.uuid, gpu.is_visible) for gpu in gpus] == [(0, "GPU-a", True), (1, "GPU-b", True)]
    assert (gpus[0].memory_bytes, gpus[0].free_bytes, gpus[0].compute_capability) == (80, 79, (9, 0))
    assert (gpus[0].sm_clock_mhz, gpus[0].max_sm_clock_mhz, gpus[0].pcie) == (345, 1980, "PCIe 5.0 x16")
    assert gpus[0].num_nvlinks == pynvml.NVML_NVLINK_MAX_LINKS


def test_hidden_gpus_are_described_too(nvml, monkeypatch):
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")

    _, gpus = gather_gpus()

    assert [gpu.is_visible for gpu in gpus] == [False, True]


def test_what_a_gpu_cannot_tell_is_unknown_and_not_zero(nvml):
    unable = pynvml.NVMLError_NotSupported()
    questions = ("ClockInfo", "MaxClockInfo", "CurrPcieLinkWidth", "NvLinkState", "ComputeRunningProcesses")
    nvml(**{f"nvmlDeviceGet{name}": unable for name in questions}, nvmlSystemGetCudaDriverVersion=unable)

    driver, (gpu, _) = gather_gpus()

    assert driver.cuda is None
    assert (gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, gpu.pcie, gpu.num_nvlinks) == (None,) * 4
    assert gpu.processes == ()


def test_programs_on_a_gpu_are_named_where_they_can_be(nvml):
    absent = 2**22 + 1
    nvml(nvmlDeviceGetComputeRunningProcesses=[Process(os.getpid(), 5), Process(absent, None)])

    _, (gpu, _) = gather_gpus()

    assert [(p.pid, p.memory_bytes) for p in gpu.processes] == [(os.getpid(), 5), (absent, None)]
    assert gpu.processes[0].name == psutil.Process().name()
    assert gpu.processes[1].name == "unknown program"


@pytest.mark.parametrize(
    ("answers", "is_absent"),
    [
        ({"nvmlInit": pynvml.NVMLError_LibraryNotFound()}, True),
        ({"nvmlInit": pynvml.NVMLError_DriverNotLoaded()}, False),
        ({"nvmlDeviceGetCount": pynvml.NVMLError_GpuIsLost()}, False),
        ({"nvmlDeviceGetMemoryInfo": pynvml.NVMLError_Unknown()}, False),
    ],
)
def test_a_driver_that_fails_is_a_fact(nvml, answers, is_absent):
    nvml(**answers)

    driver, gpus = gather_gpus()

    assert gpus == ()
    assert driver.error
    assert driver.is_absent == is_absent


NVIDIA = ("numpy", "nvidia-cuda-runtime-cu12==12.8.90; platform_system == 'Linux'", "nvidia-nccl-cu12==2.27.3; x")


@pytest.mark.parametrize(
    ("build", "shown", "cuda", "nccl"),
    [
        (TorchBuild("2.13.0+cpu", "CPU"), "CPU", None, None),
        (TorchBuild("2.13.0+rocm6.4", "ROCm", "6.4.1"), "ROCm 6.4.1", None, None),
        (TorchBuild("2.11.0", "CUDA", "13.0"), "CUDA 13.0", (13, 0), "2.27.3"),
        (TorchBuild("2.13.0", "unknown"), "unknown", None, None),
    ],
)
def test_torch_is_told_with_its_build(monkeypatch, build, shown, cuda, nccl):
    monkeypatch.setattr(gather, "torch_build", lambda: build)
    monkeypatch.setattr(gather, "requires", lambda name: list(NVIDIA))
    monkeypatch.setattr(gather, "version", {"nvidia-nccl-cu12": "2.27.3"}.__getitem__)

    found = gather.gather_torch()

    assert (found.version, found.build, found.cuda, found.nccl) == (build.version, shown, cuda, nccl)


def test_no_torch(monkeypatch):
    monkeypatch.setattr(gather, "torch_build", lambda: None)

    assert gather.gather_torch() is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (100, 60)),
        ({"memory.max": "max\n", "memory.current": "7\n"}, (100, 60)),
        ({"memory.max": "50\n", "memory.current": "20\n"}, (50, 30)),
        ({"memory.max": "50\n", "memory.current": "55\n"}, (50, 0)),
        ({"memory.max": "500\n", "memory.current": "20\n"}, (100, 60)),
    ],
)
def test_a_containers_limit_counts(monkeypatch, tmp_path, files, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("M", "total available")(100, 60))
    monkeypatch.setattr(gather, "_CGROUP", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)

    assert gather.gather_memory() == expected


def test_a_directory_is_tried_and_left_as_it_was(tmp_path):
    found = gather.gather_directory(tmp_path / "a" / "b")

    assert found.problem is None
    assert found.free_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_directory(tmp_path):
    (tmp_path / "file").touch()

    found = gather.gather_directory(tmp_path / "file" / "b")

    assert found.problem == f"{tmp_path / 'file'} is not a directory"


def test_a_directory_without_permission(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gather.tempfile, "TemporaryFile", refuse)

    assert gather.gather_directory(tmp_path).problem == f"{tmp_path} cannot be written (Permission denied)"


def test_model_files(monkeypatch, tiny_checkpoint):
    model = tiny_checkpoint()
    monkeypatch.setattr(
        "gpt_parallel.inputs.models._cached", lambda repositories: model if "gpt2" in repositories else None
    )

    assert gather.gather_model("gpt2").directory == str(model)
    assert gather.gather_model("gpt2-large").directory is None
    assert gather.gather_model("qwen3-nano").has_weights is False
    assert gather.gather_model("gpt2-nano").directory.endswith("gpt2-nano")
    (model / "model.safetensors").write_bytes(b"short")
    assert "truncated or not a safetensors file" in gather.gather_model("gpt2").problem


def test_everything_here(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    facts = gather.gather_facts(tmp_path)

    assert facts.thread_variables["OMP_NUM_THREADS"] == "3"
    assert facts.num_cores == len(os.sched_getaffinity(0))
    assert 0 < facts.available_bytes <= facts.memory_bytes
    assert facts.output.path == str(tmp_path)
    assert {model.name for model in facts.models} >= {"gpt2", "gpt2-xl", "gpt2-nano"}
