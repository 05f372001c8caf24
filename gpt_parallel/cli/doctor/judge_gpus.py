"""Judges driver, torch build and GPUs together: most trouble is that one of them does not suit the others."""

from collections.abc import Callable

from gpt_parallel.cli.doctor.facts import Facts, GpuFacts
from gpt_parallel.cli.doctor.findings import Finding, note, ok, problem, warning
from gpt_parallel.layout.cost import gib

# The least that NCCL's rings between two GPUs want; container engines give 64 MiB unless told otherwise.
_NCCL_SHM_BYTES = 256 << 20


def judge_gpus(facts: Facts, device: str) -> list[Finding]:
    """`device` as in the settings: with "cuda" the job cannot run without a GPU, with "cpu" none is looked at."""
    if not facts.gpus:
        return [_no_gpu(facts, device)]
    gpus = [_of_gpu(gpu) for gpu in facts.gpus]
    if device == "cpu":
        return [*gpus, note("CUDA", "runs use CPU cores, as was asked for")]
    if (unusable := _unusable(facts, device)) is not None:
        return [*gpus, unusable]
    return [_of_driver(facts), *gpus, *_foreign(facts), *_between(facts)]


def _trouble(device: str) -> Callable[[str, str, str], Finding]:
    """A missing GPU is a problem only where one was asked for."""
    return problem if device == "cuda" else warning


def _unusable(facts: Facts, device: str) -> Finding | None:
    """Why torch cannot use any of the GPUs there are."""
    torch, driver, count = facts.torch, facts.driver, f"{len(facts.gpus)} GPU(s)"
    cpu = "" if device == "cuda" else "; runs use CPU cores"
    if torch is not None and torch.cuda is None and torch.build != "unknown":
        return _trouble(device)(
            "CUDA",
            f"{count}, but torch {torch.version} is a {torch.build} build{cpu}",
            "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu128",
        )
    if not facts.visible_gpus:
        return _trouble(device)(
            "CUDA",
            f"no CUDA device visible: CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices!r} hides all {count}{cpu}",
            "unset CUDA_VISIBLE_DEVICES, or name GPUs that exist, such as CUDA_VISIBLE_DEVICES=0",
        )
    if torch is not None and torch.cuda and driver.cuda and driver.cuda[0] < torch.cuda[0]:
        return problem(
            "CUDA",
            f"torch is built for CUDA {torch.cuda[0]}.{torch.cuda[1]}, but driver {driver.version} supports "
            f"CUDA {driver.cuda[0]}.{driver.cuda[1]} at most",
            f"update the NVIDIA driver, or install a torch built for CUDA {driver.cuda[0]}",
        )
    return None


def _no_gpu(facts: Facts, device: str) -> Finding:
    driver = facts.driver
    if driver.error is not None and not driver.is_absent:
        return _trouble(device)(
            "CUDA",
            f"the NVIDIA driver is there but does not answer ({driver.error})",
            "check nvidia-smi; after a driver update restart the machine; in a container pass --gpus all",
        )
    if device == "cuda":
        return problem(
            "CUDA",
            "device 'cuda' was asked for, but there is no NVIDIA GPU or driver",
            "use --device cpu; in a container pass --gpus all; else install the NVIDIA driver",
        )
    return note(
        "CUDA",
        "no NVIDIA GPU: runs use CPU cores; a GPU would add gpt2-xl in 16 bits over NCCL, decoded as CUDA graphs",
    )


def _of_driver(facts: Facts) -> Finding:
    driver, torch = facts.driver, facts.torch
    supports = f" for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else ""
    nccl = f"NCCL {torch.nccl}" if torch is not None and torch.nccl else "NCCL as built into torch"
    return ok("CUDA", f"driver {driver.version or 'of unknown version'}{supports}, {nccl}")


def _of_gpu(gpu: GpuFacts) -> Finding:
    parts = [f"{gpu.name}, {gib(gpu.memory_bytes)} ({gib(gpu.free_bytes)} free)"]
    if gpu.sm_clock_mhz is not None and gpu.max_sm_clock_mhz is not None:
        parts.append(f"clock {gpu.sm_clock_mhz} of {gpu.max_sm_clock_mhz} MHz")
    parts += [gpu.pcie] if gpu.pcie else []
    parts.append(f"{gpu.num_nvlinks} NVLinks" if gpu.num_nvlinks else "no NVLink")
    parts += [] if gpu.is_visible else ["hidden by CUDA_VISIBLE_DEVICES"]
    return (ok if gpu.is_visible else note)(f"GPU {gpu.index}", ", ".join(parts))


def _foreign(facts: Facts) -> list[Finding]:
    found = []
    for gpu in facts.visible_gpus:
        for process in gpu.processes:
            held = f" and holds {gib(process.memory_bytes)}" if process.memory_bytes else ""
            found.append(
                warning(
                    f"GPU {gpu.index}",
                    f"{process.name} (process {process.pid}) runs there too{held}: it will disturb timings",
                    "end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
                )
            )
    return found


def _between(facts: Facts) -> list[Finding]:
    """What matters once GPUs talk to each other."""
    gpus = facts.visible_gpus
    if len(gpus) < 2:
        return []
    found = []
    if not all(gpu.num_nvlinks for gpu in gpus):
        text = "no NVLink between all GPUs: tensor parallelism goes over PCIe, and is slower for it"
        found.append(note("links", text))
    if facts.shm_bytes is not None and facts.shm_bytes < _NCCL_SHM_BYTES:
        found.append(
            warning(
                "shared memory",
                f"/dev/shm has {facts.shm_bytes >> 20} MiB, and NCCL may need more to connect GPUs",
                "start the container with --shm-size=1g or --ipc=host",
            )
        )
    return found
