"""Gathers the facts about the machine and the installation that `doctor` judges, and changes nothing."""

import os
import platform
import re
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.cli.doctor.facts import DirectoryFacts, Facts, ModelFacts, TorchFacts
from gpt_parallel.cli.doctor.gather_gpus import gather_gpus
from gpt_parallel.inputs.models import ARCHITECTURES, has_published_weights, resolve_model, shipped_weights
from gpt_parallel.launch.devices import available_cores, cpu_name
from gpt_parallel.launch.torch_build import torch_build
from gpt_parallel.version import __version__

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "KMP_AFFINITY", "OMP_PROC_BIND")
_CGROUP = Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")


def gather_facts(output_dir: Path) -> Facts:
    from huggingface_hub.constants import HF_HUB_CACHE

    driver, gpus = gather_gpus()
    memory_bytes, available_bytes = gather_memory()
    return Facts(
        gpt_parallel=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        torch=gather_torch(),
        driver=driver,
        gpus=gpus,
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        cpu=cpu_name(),
        num_cores=len(available_cores()),
        num_machine_cores=os.cpu_count() or 1,
        memory_bytes=memory_bytes,
        available_bytes=available_bytes,
        thread_variables={name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
        shm_bytes=shutil.disk_usage(_SHM).total if _SHM.is_dir() else None,
        temporary=gather_directory(Path(tempfile.gettempdir())),
        output=gather_directory(output_dir),
        cache=gather_directory(Path(HF_HUB_CACHE)),
        models=tuple(gather_model(name) for name in ARCHITECTURES),
    )


def gather_torch() -> TorchFacts | None:
    build = torch_build()
    if build is None:
        return None
    nccl = _wheel_version("nccl") if build.kind == "CUDA" else None
    return TorchFacts(version=build.version, build=str(build), cuda=build.cuda, nccl=nccl)


def _wheel_version(library: str) -> str | None:
    """The installed version of an NVIDIA library that torch depends on, e.g. nvidia-nccl-cu13."""
    for requirement in requires("torch") or ():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if name.startswith(f"nvidia-{library}"):
            try:
                return version(name)
            except PackageNotFoundError:
                continue
    return None


def gather_memory() -> tuple[int, int]:
    """Total and available bytes, at most a container's limit."""
    import psutil

    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no limit, or none of this kind
        return total, available
    return min(total, limit), max(0, min(available, limit - used))


def gather_directory(path: Path) -> DirectoryFacts:
    """Whether files can be created in a directory. A missing directory is judged by its nearest existing parent."""
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        return DirectoryFacts(path=str(path), problem=f"{nearest} is not a directory")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        return DirectoryFacts(path=str(path), problem=f"{nearest} cannot be written ({error.strerror})")
    return DirectoryFacts(path=str(path), free_bytes=shutil.disk_usage(nearest).free)


def gather_model(name: str) -> ModelFacts:
    if directory := shipped_weights(name):
        return ModelFacts(name=name, directory=str(directory))
    if not has_published_weights(name):
        return ModelFacts(name=name, has_weights=False)
    try:
        found = resolve_model(name, "auto", offline=True)
    except SpecError as error:
        return ModelFacts(name=name, problem="; ".join(error.problems))
    return ModelFacts(name=name, directory=found.directory)
