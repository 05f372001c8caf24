"""Checks driver, torch build and GPUs together: most problems are a mismatch between them."""

from collections.abc import Callable

from gpt_parallel.cli.doctor.facts import Facts, GpuFacts
from gpt_parallel.cli.doctor.findings import Finding, note, ok, problem, warning
from gpt_parallel.layout.cost import gib

# The minimum for NCCL's rings between two GPUs; container engines give 64 MiB by default.
_NCCL_SHM_BYTES = 256 << 20


def check_gpus(facts: Facts, device: str) -> list[Finding]:
    """The findings. `device` as in the settings: with "cuda" the job needs a GPU, with "cpu" GPUs are only listed."""
    if not facts.gpus:
        return [_no_gpu(facts, device)]
    gpus = [_of_gpu(gpu) for gpu in facts.gpus]
    if device == "cpu":
        return [*gpus, note("CUDA", "runs use CPU cores, because device is 'cpu'")]
    if (unusable := _unusable(facts, device)) is not None:
        return [*gpus, unusable]
    return [_of_driver(facts), *gpus, *_other_programs(facts), *_links(facts)]


def _problem_or_warning(device: str) -> Callable[[str, str, str], Finding]:
    """The kind of finding for a missing GPU, which is a problem only if device is "cuda"."""
    return problem if device == "cuda" else warning


def _unusable(facts: Facts, device: str) -> Finding | None:
    """The finding that torch can use none of the machine's GPUs, with the reason; None if it can."""
    torch, driver, count = facts.torch, facts.driver, f"{len(facts.gpus)} GPU(s)"
    cpu = "" if device == "cuda" else "; runs use CPU cores"
    if torch is not None and torch.cuda is None and torch.build != "unknown":
        return _problem_or_warning(device)(
            "CUDA",
            f"{count}, but torch {torch.version} is a {torch.build} build{cpu}",
            "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu128",
        )
    if not facts.visible_gpus:
        return _problem_or_warning(device)(
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
        return _problem_or_warning(device)(
            "CUDA",
            f"the NVIDIA driver is installed but does not answer ({driver.error})",
            "check nvidia-smi; after a driver update restart the machine; in a container pass --gpus all",
        )
    if device == "cuda":
        return problem(
            "CUDA",
            "device is 'cuda', but there is no NVIDIA GPU or driver",
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


def _other_programs(facts: Facts) -> list[Finding]:
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


def _links(facts: Facts) -> list[Finding]:
    """Findings about the communication between GPUs."""
    gpus = facts.visible_gpus
    if len(gpus) < 2:
        return []
    found = []
    if not all(gpu.num_nvlinks for gpu in gpus):
        text = "no NVLink between all GPUs: tensor parallelism uses PCIe, which is slower"
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
