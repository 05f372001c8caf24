"""Resolves settings for this machine: device, number type, backend, and which cases can run."""

import platform
import sys
from typing import Literal

from gpt_parallel.base.errors import SpecError, see
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch.cluster.command import parse_launcher
from gpt_parallel.launch.devices import available_cores, cuda_devices
from gpt_parallel.schema.run import AttentionChoice, Dtype, ExecutionSpec


def default_preset() -> str:
    """ "xl", the classic gpt2-xl workload, if there is a GPU; otherwise "cpu", a small one."""
    return "xl" if cuda_devices() else "cpu"


def resolve_device(settings: Settings) -> str:
    """ "cpu" or "cuda". Raises SpecError if device is "cuda" and no CUDA GPU is usable."""
    if settings.device == "auto":
        return "cuda" if cuda_devices() else "cpu"
    if settings.device == "cuda" and not cuda_devices():
        raise SpecError(
            "device is 'cuda', but no CUDA GPU is usable here (no NVIDIA driver, no visible GPU, or a CPU build of "
            "torch); use device 'cpu', or check nvidia-smi and CUDA_VISIBLE_DEVICES" + see("gpu")
        )
    return settings.device


def device_counts(settings: Settings) -> tuple[int, ...]:
    """The device counts to run: those of the settings, else of the launcher, else 1, 2, 4 and, with 8 GPUs, 8."""
    if settings.device_counts:
        return settings.device_counts
    if settings.launcher and (size := parse_launcher(settings.launcher).size):
        return (size,)
    return (1, 2, 4, 8) if resolve_device(settings) == "cuda" and len(cuda_devices()) >= 8 else (1, 2, 4)


def reason_to_skip(settings: Settings, num_gpus: int) -> str | None:
    """The reason why a case cannot run here or by the launcher; None if it can. CPU ranks can always share cores."""
    if settings.launcher:
        return parse_launcher(settings.launcher).reason_to_skip(num_gpus)
    if resolve_device(settings) == "cpu" or settings.oversubscribe or num_gpus <= len(cuda_devices()):
        return None
    return (
        f"needs {num_gpus} GPUs, this machine has {len(cuda_devices())} (the oversubscribe option lets ranks share one)"
    )


def resolve_execution(settings: Settings, num_gpus: int) -> ExecutionSpec:
    """Resolve device, number type and backend for one case. Raises SpecError for settings that do not work here."""
    device = resolve_device(settings)
    if reason := reason_to_skip(settings, num_gpus):
        raise SpecError(reason)
    if settings.launcher:
        oversubscribed = False  # not known until ranks report their machines
    elif device == "cpu":
        oversubscribed = num_gpus * settings.cores_per_rank > len(available_cores())
    else:
        oversubscribed = num_gpus > len(cuda_devices())
    return ExecutionSpec(
        device="cuda" if device == "cuda" else "cpu",
        dtype=_resolve_dtype(settings, device),
        backend=_resolve_backend(settings, device, oversubscribed),
        linear=settings.linear,
        log_dir=settings.log_dir,
        attention=_check_attention(settings, device),
        decode=_resolve_decode(settings, device, oversubscribed),
        cores_per_rank=settings.cores_per_rank,
        oversubscribed=oversubscribed,
        warmup=settings.warmup,
        rounds=settings.num_iterations,
        timeout_s=settings.timeout_s,
        telemetry=settings.telemetry,
        breakdown=settings.breakdown,
    )


def _resolve_backend(settings: Settings, device: str, oversubscribed: bool) -> Literal["gloo", "nccl", "shm"]:
    can_share = (
        device == "cpu"
        and not settings.launcher
        and sys.platform == "linux"
        and platform.machine() in ("x86_64", "AMD64")
    )
    if settings.backend == "auto":
        if device == "cuda" and not oversubscribed:
            return "nccl"
        return "shm" if can_share else "gloo"
    if settings.backend == "nccl" and (device == "cpu" or oversubscribed):
        raise SpecError("backend 'nccl' needs one CUDA GPU per rank; use backend 'auto' or 'gloo'")
    if settings.backend == "shm" and not can_share:
        raise SpecError("backend 'shm' needs CPU ranks on x86-64 Linux; use backend 'auto' or 'gloo'")
    return settings.backend


def _resolve_decode(settings: Settings, device: str, oversubscribed: bool) -> Literal["eager", "graph"]:
    """Graphs capture only work on the device; ranks that share a GPU communicate through the host."""
    possible = device == "cuda" and not oversubscribed and settings.backend != "gloo"
    if settings.decode == "auto":
        return "graph" if possible else "eager"
    if settings.decode == "graph" and not possible:
        raise SpecError("decode 'graph' needs one CUDA GPU per rank and backend 'nccl'; use decode 'auto' or 'eager'")
    return settings.decode


def _check_attention(settings: Settings, device: str) -> AttentionChoice:
    if settings.attention in ("efficient", "cudnn") and device == "cpu":
        raise SpecError(
            f"attention {settings.attention!r} is a CUDA kernel; on CPU use 'auto' or 'flash', whose kernel there "
            "keeps no tokens × tokens matrix either"
        )
    is_float32 = device == "cuda" and _resolve_dtype(settings, device) == "float32"
    if settings.attention in ("flash", "cudnn") and is_float32:
        raise SpecError(
            f"attention {settings.attention!r} has no float32 kernel on CUDA; use dtype bfloat16 or float16, "
            "or 'efficient'"
        )
    return settings.attention


def _resolve_dtype(settings: Settings, device: str) -> Dtype:
    if settings.dtype != "auto":
        return settings.dtype
    if device == "cpu":
        return "float32"
    return "bfloat16" if all(gpu.compute_capability >= (8, 0) for gpu in cuda_devices()) else "float16"
