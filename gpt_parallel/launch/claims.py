"""Two runs at once on one machine do not share devices unknowingly.

A claim is the name of an abstract Unix socket, bound and never listened on. It is no file, runs of all users see it,
and the kernel takes it back from a process however that ends. Such names belong to a network namespace: runs in
containers with networks of their own do not see each other's.
"""

import errno
import logging
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from gpt_parallel.launch.devices import available_cores, cuda_devices, open_nvml
from gpt_parallel.settings import WhenBusy
from gpt_parallel.spec import ExecutionSpec, SpecError

AVAILABLE = sys.platform == "linux"

Policy = Literal["wait", "refuse", "share"]
OnWait = Callable[[str], None]

_PERIOD_S = 0.2  # there is nothing to wait on
_MEMORY_WAIT_S = 5.0
_MEMORY_SLACK_BYTES = 64 << 20  # other programs on the GPU come and go
_LOGGER = logging.getLogger("gpt_parallel")


@contextmanager
def claim_devices(
    execution: ExecutionSpec, num_ranks: int, when_busy: WhenBusy, on_wait: OnWait
) -> Iterator[tuple[int, ...]]:
    """Claim a launch's devices, and yield the cores to deal to its ranks.

    GPUs are let go when their memory is free again. Raises SpecError if they are busy and `when_busy` is "refuse".
    """
    if execution.device == "cuda":
        uuids = [gpu.uuid for gpu in cuda_devices()[:num_ranks]]
        with claim_gpus(uuids, "wait" if when_busy == "auto" else when_busy, on_wait), memory_given_back(uuids):
            yield available_cores()
        return
    count = num_ranks * execution.cores_per_rank
    with claim_cores(available_cores(), count, "share" if when_busy == "auto" else when_busy, on_wait) as cores:
        yield cores


@contextmanager
def claim_gpus(uuids: Sequence[str], when_busy: Policy, on_wait: OnWait) -> Iterator[None]:
    """Claim all of these GPUs, or with "share" none."""
    with ExitStack() as claims:
        if when_busy != "share":
            for uuid in sorted(set(uuids)):  # in one order everywhere: two runs never wait for each other
                claims.enter_context(_claim_gpu(uuid, f"GPU {uuids.index(uuid)}", when_busy, on_wait))
        yield


def _claim_gpu(uuid: str, title: str, when_busy: Policy, on_wait: OnWait) -> ExitStack:
    is_told = False
    while (claim := _claim(f"gpu/{uuid}")) is None:
        if when_busy == "refuse":
            raise SpecError(
                f"{title} ({uuid}) is used by another run of gpt_parallel; choose other GPUs with "
                "CUDA_VISIBLE_DEVICES, or let when-busy be 'wait' or 'share'"
            )
        if not is_told:
            on_wait(f"waiting for {title}, which another run of gpt_parallel uses")
            is_told = True
        time.sleep(_PERIOD_S)
    return claim


@contextmanager
def claim_cores(available: Sequence[int], count: int, when_busy: Policy, on_wait: OnWait) -> Iterator[tuple[int, ...]]:
    """Claim and yield `count` of the available cores, or all where there are fewer.

    Those that nobody has claimed come first; with "share" the rest are cores of other runs, and `on_wait` is told.
    """
    count, is_told = min(count, len(available)), False
    while True:
        with ExitStack() as claims:
            free = _claim_free_cores(available, count, claims)
            if len(free) == count or when_busy == "share":
                busy = [core for core in available if core not in free][: count - len(free)]
                if busy:
                    on_wait(f"sharing {len(busy)} CPU core(s) with other runs of gpt_parallel, which slows both")
                chosen = {*free, *busy}
                yield tuple(core for core in available if core in chosen)
                return
        if when_busy == "refuse":
            raise SpecError(
                f"{count} CPU core(s) are needed, and other runs of gpt_parallel leave {len(free)} of "
                f"{len(available)}; let when-busy be 'wait' or 'share'"
            )
        if not is_told:
            on_wait(f"waiting for {count} CPU core(s), which other runs of gpt_parallel use")
            is_told = True
        time.sleep(random.uniform(_PERIOD_S / 2, _PERIOD_S))  # two that got a half each must not meet again


def _claim_free_cores(available: Sequence[int], count: int, claims: ExitStack) -> list[int]:
    free: list[int] = []
    for core in available:
        if len(free) < count and (claim := _claim(f"core/{core}")) is not None:
            claims.enter_context(claim)
            free.append(core)
    return free


def _claim(name: str) -> ExitStack | None:
    """To be closed to give it back; None if somebody else has it. Programs that are started do not inherit it."""
    with ExitStack() as stack:
        if AVAILABLE:
            try:
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0gpt_parallel/{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                return None
        return stack.pop_all()


@contextmanager
def memory_given_back(uuids: Sequence[str]) -> Iterator[None]:
    """When its block ends, however it does, wait until these GPUs use no more memory than when it began.

    A driver takes a moment to free what ended processes held, and the next run must not find too little.
    """
    before = _used_bytes(uuids)
    try:
        yield
    finally:
        wait_for_free_memory(uuids, before)


def wait_for_free_memory(uuids: Sequence[str], before: Sequence[int]) -> None:
    """Return when each GPU uses as little memory as `before`, or, with a warning, after five seconds."""
    deadline = time.monotonic() + _MEMORY_WAIT_S
    while any(now > then + _MEMORY_SLACK_BYTES for now, then in zip(_used_bytes(uuids), before, strict=False)):
        if time.monotonic() > deadline:
            _LOGGER.warning("the GPUs' memory is not free %g s after the run that used it", _MEMORY_WAIT_S)
            return
        time.sleep(_PERIOD_S / 4)


def _used_bytes(uuids: Sequence[str]) -> list[int]:
    """Memory in use by any program on each GPU; empty where that is not known."""
    with open_nvml() as nvml:
        if nvml is None:
            return []
        try:
            return [int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used) for uuid in uuids]
        except nvml.NVMLError:
            return []
