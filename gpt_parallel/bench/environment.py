"""Describes the machine and the code of a result."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.redaction import redact
from gpt_parallel.inputs.models import resolve_model
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch.devices import available_cores, cpu_name, cuda_devices
from gpt_parallel.schema.result import Environment, RankReport
from gpt_parallel.version import __version__

# The only environment variables that are recorded. They are full names, because prefixes might match a variable with a
# credential or an address. Ranks report their numbers of threads themselves.
RECORDED_VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_LAUNCH_BLOCKING"),
    *("CUDA_MODULE_LOADING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE"),
    *("NCCL_ALGO", "NCCL_PROTO", "NCCL_NET", "NCCL_SOCKET_IFNAME", "NCCL_SOCKET_NTHREADS", "NCCL_NSOCKS_PERTHREAD"),
    *("NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_IB_GID_INDEX", "NCCL_IB_TC", "NCCL_CROSS_NIC", "NCCL_NET_GDR_LEVEL"),
    *("NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_CUMEM_ENABLE"),
    *("NCCL_BUFFSIZE", "NCCL_NTHREADS", "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_MIN_CTAS", "NCCL_MAX_CTAS"),
    *("NCCL_COLLNET_ENABLE", "NCCL_DMABUF_ENABLE", "NCCL_GRAPH_MIXING_SUPPORT", "NCCL_LAUNCH_MODE", "NCCL_DEBUG"),
    *("TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_HIGH_PRIORITY"),
    *("TORCH_NCCL_AVOID_RECORD_STREAMS", "TORCH_DISTRIBUTED_DEBUG", "GLOO_SOCKET_IFNAME", "GLOO_DEVICE_TRANSPORT"),
    *("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_CUDNN_V8_API_DISABLED"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_SCHEDULE", "OMP_DYNAMIC", "OMP_WAIT_POLICY"),
    *("GOMP_CPU_AFFINITY", "GOMP_SPINCOUNT", "KMP_AFFINITY", "KMP_BLOCKTIME", "KMP_HW_SUBSET", "KMP_LIBRARY"),
    *("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_NUM_THREADS"),
    *("LD_PRELOAD", "GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_CONF", "MALLOC_TOP_PAD_"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
)


# Files of a model's directory, beside its weights, that determine its results.
_MODEL_FILES = ("config.json", "tokenizer.json", "vocab.json", "merges.txt")


def describe_environment(ranks: Sequence[RankReport]) -> Environment:
    commit, dirty = git_state()
    return Environment(
        gpt_parallel=__version__,
        torch=ranks[0].place.torch_version,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        num_cores=len(available_cores()),
        device_names=tuple(rank.place.device_name for rank in ranks),
        hostname=platform.node(),
        git_commit=commit,
        git_dirty=dirty,
        variables=_variables(),
    )


def describe_machine() -> dict[str, str]:
    """The machine, torch, code and variables, which must not change between figures of one table."""
    return {
        "hostname": platform.node(),
        "processor": cpu_name(),
        "cores": str(len(available_cores())),
        "gpus": ", ".join(gpu.name for gpu in cuda_devices()),
        "torch": version("torch"),
        "gpt_parallel": __version__,
        "code": _describe_code(_here()),
        **_variables(),
    }


def describe_weights(settings: Settings) -> dict[str, str]:
    """Size and time of each file of the model; empty if the model cannot be resolved, which running it reports."""
    try:
        model = resolve_model(settings.model, settings.weights, settings.weights_seed, offline=settings.offline)
    except SpecError:
        return {}
    if model.directory is None:
        return {}
    paths = [Path(model.directory, name) for name in (*model.files, *_MODEL_FILES)]
    states = {path.name: path.stat() for path in paths if path.exists()}
    return {f"file {name}": f"{state.st_size} bytes of {state.st_mtime_ns}" for name, state in states.items()}


def _variables() -> dict[str, str]:
    return {name: redact(os.environ[name]) for name in RECORDED_VARIABLES if name in os.environ}


def _describe_code(here: Path) -> str:
    """The checkout's commit and a digest of its changes, or a digest of an installed copy's files."""
    commit, dirty = _git_state(here)
    if commit is None:
        return f"files {_digest(path.read_bytes() for path in sorted(here.rglob('*.py')))}"
    return f"commit {commit}" + (f" with changes {_digest(_changes(here))}" if dirty else "")


def _changes(here: Path) -> Iterator[bytes]:
    command = ["git", "-C", str(here), "diff", "--binary", "--no-ext-diff", "--no-textconv", "HEAD"]
    with suppress(OSError, subprocess.SubprocessError):
        yield subprocess.run(command, capture_output=True, timeout=10, check=True, start_new_session=True).stdout


def _digest(contents: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _here() -> Path:
    return Path(__file__).parent.parent


@lru_cache(maxsize=4)
def _git_state(here: Path) -> tuple[str | None, bool | None]:
    """Commit and dirty flag of the checkout this package runs from; None for an installed copy."""
    if _git(here, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    status = _git(here, "status", "--porcelain", "--untracked-files=no")
    return _git(here, "rev-parse", "HEAD"), None if status is None else bool(status)


def git_state() -> tuple[str | None, bool | None]:
    """The commit of this package's checkout, and whether it has changes; None for an installed copy."""
    return _git_state(_here())


def git_branch() -> str | None:
    """The branch of this package's checkout; None if there is no checkout or no branch."""
    return _git(_here(), "symbolic-ref", "--short", "--quiet", "HEAD")


def _git(directory: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            start_new_session=True,  # a terminal's Ctrl-C must not end git, which finishes soon
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
