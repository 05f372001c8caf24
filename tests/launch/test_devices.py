"""What a machine has, with NVML's facts faked at the boundary."""

import pynvml
import pytest

from gpt_parallel.base.errors import SpecError
from gpt_parallel.inputs.execution import default_preset, device_counts, reason_to_skip, resolve_execution
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import devices
from gpt_parallel.launch.torch_build import TorchBuild

UUIDS = ("GPU-aaaa1111", "GPU-aabb2222", "GPU-cccc3333")


@pytest.fixture
def gpus(monkeypatch):
    """gpus(capabilities) makes this a machine with a CUDA build of torch and so many GPUs."""

    def machine(*capabilities, torch="CUDA"):
        devices.cuda_devices.cache_clear()
        monkeypatch.setattr(devices, "torch_build", lambda: TorchBuild("2.13.0", torch))
        monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(capabilities))
        monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
        monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: f"GPU model {handle}")
        monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: (*UUIDS, *range(3, 8))[handle])
        monkeypatch.setattr(pynvml, "nvmlDeviceGetCudaComputeCapability", lambda handle: capabilities[handle])

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield machine
    devices.cuda_devices.cache_clear()


def smoke(**given):
    return make_settings("smoke", given)


def test_gpus_are_used_where_there_are_any(gpus):
    gpus((9, 0), (9, 0))

    execution = resolve_execution(smoke(), 2)

    assert default_preset() == "xl"
    assert (execution.device, execution.backend, execution.dtype) == ("cuda", "nccl", "bfloat16")
    assert not execution.oversubscribed


def test_ranks_of_one_x86_host_share_memory(gpus, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert resolve_execution(smoke(device="cpu"), 2).backend == "shm"
    assert resolve_execution(smoke(device="cpu", backend="gloo"), 2).backend == "gloo"
    gpus((9, 0))
    with pytest.raises(SpecError, match="backend 'shm' needs CPU ranks on x86-64 Linux"):
        resolve_execution(smoke(backend="shm"), 1)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert resolve_execution(smoke(device="cpu"), 2).backend == "gloo"
    with pytest.raises(SpecError, match="backend 'shm' needs CPU ranks on x86-64 Linux"):
        resolve_execution(smoke(device="cpu", backend="shm"), 2)


def test_gpus_decode_by_graphs_where_nothing_passes_through_the_host(gpus):
    gpus((9, 0), (9, 0))

    assert resolve_execution(smoke(), 2).decode == "graph"
    assert resolve_execution(smoke(decode="eager"), 2).decode == "eager"
    assert resolve_execution(smoke(oversubscribe=True), 4).decode == "eager"
    assert resolve_execution(smoke(backend="gloo"), 2).decode == "eager"
    assert resolve_execution(smoke(device="cpu"), 2).decode == "eager"
    with pytest.raises(SpecError, match="decode 'graph' needs one CUDA GPU per rank"):
        resolve_execution(smoke(device="cpu", decode="graph"), 1)


def test_older_gpus_take_float16(gpus):
    gpus((9, 0), (7, 5))

    assert resolve_execution(smoke(), 2).dtype == "float16"
    assert resolve_execution(smoke(dtype="float32"), 2).dtype == "float32"


def test_cases_with_too_few_gpus_are_skipped_unless_ranks_may_share(gpus):
    gpus((9, 0))

    assert "needs 2 GPUs, this machine has 1" in reason_to_skip(smoke(), 2)
    shared = resolve_execution(smoke(oversubscribe=True), 2)
    assert (shared.backend, shared.oversubscribed) == ("gloo", True)
    assert reason_to_skip(smoke(device="cpu"), 4) is None
    with pytest.raises(SpecError, match="'nccl' needs one CUDA GPU per rank"):
        resolve_execution(smoke(oversubscribe=True, backend="nccl"), 2)


def test_eight_gpus_add_their_cases(gpus):
    gpus(*[(9, 0)] * 3)
    assert device_counts(smoke()) == (1, 2, 4)
    gpus(*[(9, 0)] * 8)

    assert device_counts(smoke()) == (1, 2, 4, 8)
    assert device_counts(smoke(device="cpu")) == (1, 2, 4)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0,7,1", [0]),
        ("GPU-cccc", [2]),
        ("GPU-aa", []),
        ("-1", []),
        (" 1 , GPU-aaaa1111", [1, 0]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(gpus, monkeypatch, visible, expected):
    gpus((9, 0), (9, 0), (9, 0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert [gpu.name for gpu in devices.cuda_devices()] == [f"GPU model {index}" for index in expected]
    assert [gpu.uuid for gpu in devices.cuda_devices()] == [UUIDS[index] for index in expected]


@pytest.mark.parametrize("build", ["CPU", "ROCm"])
def test_a_torch_that_is_not_built_for_cuda_uses_no_gpu(gpus, build):
    gpus((9, 0), torch=build)

    assert default_preset() == "cpu"
    with pytest.raises(SpecError, match="no CUDA GPU is usable here"):
        resolve_execution(smoke(device="cuda"), 1)


def test_no_driver_is_no_gpu(gpus, monkeypatch):
    gpus((9, 0))

    def absent():
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", absent)

    assert devices.cuda_devices() == ()


def test_ranks_beyond_the_cores_are_oversubscribed(gpus, monkeypatch):
    gpus(torch="CPU")
    monkeypatch.setattr("gpt_parallel.inputs.execution.available_cores", lambda: (0, 1, 2, 3))

    assert not resolve_execution(smoke(), 4).oversubscribed
    assert resolve_execution(smoke(cores_per_rank=2), 4).oversubscribed
    assert resolve_execution(smoke(), 4).dtype == "float32"


def test_attention_kernels_that_a_device_has_not_are_refused(gpus):
    assert resolve_execution(smoke(device="cpu", attention="flash"), 1).attention == "flash"
    for kernel in ("efficient", "cudnn"):
        with pytest.raises(SpecError, match=f"attention '{kernel}' is a CUDA kernel; on CPU use 'auto' or 'flash'"):
            resolve_execution(smoke(device="cpu", attention=kernel), 1)
    gpus((9, 0))
    assert resolve_execution(smoke(attention="efficient", dtype="float32"), 1).attention == "efficient"
    for kernel in ("flash", "cudnn"):
        assert resolve_execution(smoke(attention=kernel), 1).attention == kernel
        with pytest.raises(SpecError, match=f"attention '{kernel}' has no float32 kernel on CUDA"):
            resolve_execution(smoke(attention=kernel, dtype="float32"), 1)
