"""Judges driver, torch build and GPUs together: most trouble is that one of them does not suit the others."""

from gpt_parallel.cli.doctor.facts import Facts, GpuFacts
from gpt_parallel.cli.doctor.findings import Finding, Level
from gpt_parallel.layout.cost import gib

# The least that NCCL's rings between two GPUs want; container engines give 64 MiB unless told otherwise.
_NCCL_SHM_BYTES = 256 << 20


def judge_gpus(facts: Facts, device: str) -> list[Finding]:
    """`device` as in the settings: with "cuda" the job cannot run without a GPU, with "cpu" none is looked at."""
    is_cuda_asked = device == "cuda"
    level: Level = "problem" if is_cuda_asked else "warning"
    cpu = "" if is_cuda_asked else "; runs use CPU cores"
    torch, driver = facts.torch, facts.driver
    if not facts.gpus:
        return [_no_gpu(facts, is_cuda_asked)]
    found = [_of_gpu(gpu) for gpu in facts.gpus]
    if device == "cpu":
        return [*found, Finding(topic="CUDA", level="note", text="runs use CPU cores, as was asked for")]
    if torch is not None and torch.cuda is None and torch.build != "unknown":
        return [
            *found,
            Finding(
                topic="CUDA",
                level=level,
                text=f"{len(facts.gpus)} GPU(s), but torch {torch.version} is a {torch.build} build{cpu}",
                remedy="install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu128",
            ),
        ]
    if not facts.visible_gpus:
        return [
            *found,
            Finding(
                topic="CUDA",
                level=level,
                text=f"no CUDA device visible: CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices!r} hides all "
                f"{len(facts.gpus)} GPU(s){cpu}",
                remedy="unset CUDA_VISIBLE_DEVICES, or name GPUs that exist, such as CUDA_VISIBLE_DEVICES=0",
            ),
        ]
    if torch is not None and torch.cuda and driver.cuda and driver.cuda[0] < torch.cuda[0]:
        return [
            *found,
            Finding(
                topic="CUDA",
                level="problem",
                text=f"torch is built for CUDA {torch.cuda[0]}.{torch.cuda[1]}, but driver {driver.version} supports "
                f"CUDA {driver.cuda[0]}.{driver.cuda[1]} at most",
                remedy=f"update the NVIDIA driver, or install a torch built for CUDA {driver.cuda[0]}",
            ),
        ]
    return [_of_driver(facts), *found, *_foreign(facts), *_between(facts)]


def _no_gpu(facts: Facts, is_cuda_asked: bool) -> Finding:
    driver = facts.driver
    if driver.error is not None and not driver.is_absent:
        return Finding(
            topic="CUDA",
            level="problem" if is_cuda_asked else "warning",
            text=f"the NVIDIA driver is there but does not answer ({driver.error})",
            remedy="check nvidia-smi; after a driver update restart the machine; in a container pass --gpus all",
        )
    if is_cuda_asked:
        return Finding(
            topic="CUDA",
            level="problem",
            text="device 'cuda' was asked for, but there is no NVIDIA GPU or driver",
            remedy="use --device cpu; in a container pass --gpus all; else install the NVIDIA driver",
        )
    return Finding(
        topic="CUDA",
        level="note",
        text="no NVIDIA GPU: runs use CPU cores; a GPU would add gpt2-xl in 16 bits over NCCL, decoded as CUDA graphs",
    )


def _of_driver(facts: Facts) -> Finding:
    driver, torch = facts.driver, facts.torch
    supports = f" for CUDA up to {driver.cuda[0]}.{driver.cuda[1]}" if driver.cuda else ""
    nccl = f"NCCL {torch.nccl}" if torch is not None and torch.nccl else "NCCL as built into torch"
    return Finding(topic="CUDA", level="ok", text=f"driver {driver.version or 'of unknown version'}{supports}, {nccl}")


def _of_gpu(gpu: GpuFacts) -> Finding:
    parts = [f"{gpu.name}, {gib(gpu.memory_bytes)} ({gib(gpu.free_bytes)} free)"]
    if gpu.sm_clock_mhz is not None and gpu.max_sm_clock_mhz is not None:
        parts.append(f"clock {gpu.sm_clock_mhz} of {gpu.max_sm_clock_mhz} MHz")
    parts += [gpu.pcie] if gpu.pcie else []
    parts.append(f"{gpu.num_nvlinks} NVLinks" if gpu.num_nvlinks else "no NVLink")
    parts += [] if gpu.is_visible else ["hidden by CUDA_VISIBLE_DEVICES"]
    return Finding(topic=f"GPU {gpu.index}", level="ok" if gpu.is_visible else "note", text=", ".join(parts))


def _foreign(facts: Facts) -> list[Finding]:
    found = []
    for gpu in facts.visible_gpus:
        for process in gpu.processes:
            held = f" and holds {gib(process.memory_bytes)}" if process.memory_bytes else ""
            found.append(
                Finding(
                    topic=f"GPU {gpu.index}",
                    level="warning",
                    text=f"{process.name} (process {process.pid}) runs there too{held}: it will disturb timings",
                    remedy="end it, or choose other GPUs with CUDA_VISIBLE_DEVICES",
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
        found.append(Finding(topic="links", level="note", text=text))
    if facts.shm_bytes is not None and facts.shm_bytes < _NCCL_SHM_BYTES:
        found.append(
            Finding(
                topic="shared memory",
                level="warning",
                text=f"/dev/shm has {facts.shm_bytes >> 20} MiB, and NCCL may need more to connect GPUs",
                remedy="start the container with --shm-size=1g or --ipc=host",
            )
        )
    return found
