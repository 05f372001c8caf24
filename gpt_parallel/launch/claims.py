"""Claims on devices, so that two runs on one machine never share a device unknowingly.

A claim is the name of an abstract Unix socket. It is not a file, runs of all users see it, and the kernel releases it
however the process ends. Such names belong to a network namespace: runs in containers with networks of their own do not
see each other's claims.

A device has several names, one for each run that shares it; it is free when none of them is taken. A run that comes to
share a device sends all the others a datagram, which tells them that their figures are not those of an unshared device.
"""

import errno
import logging
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Literal, NamedTuple

from gpt_parallel.base.errors import SpecError
from gpt_parallel.launch.devices import available_cores, cuda_devices, open_nvml
from gpt_parallel.schema.run import ExecutionSpec, WhenBusy

AVAILABLE = sys.platform == "linux"

Policy = Literal["wait", "refuse", "share"]
OnWait = Callable[[str], None]

_NUM_SLOTS = 8  # further runs on the same device are not seen
_PERIOD_S = 0.2  # of polling: no event announces a free device
_MEMORY_WAIT_S = 5.0
_MEMORY_SLACK_BYTES = 64 << 20  # other programs on the GPU come and go
_REMEDY = "use --when-busy wait or share (with pytest: --gpt-when-busy)"
_LOGGER = logging.getLogger("gpt_parallel")


class Claims(ExitStack):
    """Claims on devices, held until this is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[socket.socket] = []
        self._found_others = False

    def claim(self, device: str) -> bool:
        """Claim a device; False if another run uses it, shared or not.

        The claim holds the first name. A run that binds it, and then finds all others free, came before any run that
        shares the device.
        """
        first, *others = _names(device)
        with ExitStack() as tried:
            if (name := _bind(first)) is None:
                return False
            tried.enter_context(name)
            for other in others:
                if (slot := _bind(other)) is None:
                    return False
                slot.close()
            tried.pop_all()
        self._names.append(self.enter_context(name))
        return True

    def share(self, device: str) -> None:
        """Hold one of a busy device's names, so that it stays busy when its first user ends; none if all are taken."""
        self._found_others = True
        if name := next(filter(None, map(_bind, _names(device))), None):
            self._names.append(self.enter_context(name))
        _notify_others(device)

    @property
    def are_shared(self) -> bool:
        """Whether other runs used any of the devices when they were claimed, or have joined since."""
        return self._found_others or any(map(_was_notified, self._names))


class Claimed(NamedTuple):
    """The cores for a launch's ranks, and the launch's claims on them or on GPUs."""

    cores: tuple[int, ...]
    claims: Claims

    @property
    def are_shared(self) -> bool:
        return self.claims.are_shared


@contextmanager
def claim_devices(execution: ExecutionSpec, num_ranks: int, when_busy: WhenBusy, on_wait: OnWait) -> Iterator[Claimed]:
    """Claim a launch's devices until the block ends.

    GPUs are released once their memory is free again. Raises SpecError if devices are busy and `when_busy` is "refuse".
    """
    if execution.device == "cuda":
        uuids = [gpu.uuid for gpu in cuda_devices()[:num_ranks]]
        policy: Policy = "wait" if when_busy == "auto" else when_busy
        with claim_gpus(uuids, policy, on_wait) as claims, memory_released(uuids):
            yield Claimed(available_cores(), claims)
        return
    count = num_ranks * execution.cores_per_rank
    with claim_cores(available_cores(), count, "share" if when_busy == "auto" else when_busy, on_wait) as claimed:
        yield claimed


@contextmanager
def claim_gpus(uuids: Sequence[str], when_busy: Policy, on_wait: OnWait) -> Iterator[Claims]:
    """Claim all of these GPUs."""
    with Claims() as claims:
        for uuid in sorted(set(uuids)):  # every run uses the same order, so that two runs never wait for each other
            _claim_gpu(claims, uuid, f"GPU {uuids.index(uuid)}", when_busy, on_wait)
        yield claims


def _claim_gpu(claims: Claims, uuid: str, title: str, when_busy: Policy, on_wait: OnWait) -> None:
    is_reported = False
    while not claims.claim(f"gpu/{uuid}"):
        if when_busy == "share":
            claims.share(f"gpu/{uuid}")
            return
        if when_busy == "refuse":
            raise SpecError(
                f"{title} ({uuid}) is used by another run of gpt_parallel; choose other GPUs with "
                f"CUDA_VISIBLE_DEVICES, or {_REMEDY}"
            )
        if not is_reported:
            on_wait(f"waiting for {title}, which another run of gpt_parallel uses")
            is_reported = True
        time.sleep(_PERIOD_S)


@contextmanager
def claim_cores(available: Sequence[int], count: int, when_busy: Policy, on_wait: OnWait) -> Iterator[Claimed]:
    """Claim and yield `count` of the available cores, or all of them if there are fewer.

    Unused cores come first; with "share" the rest are cores of other runs, and `on_wait` is called with a message.
    """
    count, is_reported = min(count, len(available)), False
    while True:
        with Claims() as claims:
            free = _claim_free_cores(available, count, claims)
            if len(free) == count or when_busy == "share":
                busy = [core for core in available if core not in free][: count - len(free)]
                for core in busy:
                    claims.share(f"core/{core}")
                if busy:
                    on_wait(f"sharing {len(busy)} CPU core(s) with other runs of gpt_parallel, which slows both")
                chosen = {*free, *busy}
                yield Claimed(tuple(core for core in available if core in chosen), claims)
                return
        if when_busy == "refuse":
            raise SpecError(
                f"{count} CPU core(s) are needed, but other runs of gpt_parallel leave {len(free)} of "
                f"{len(available)} free; {_REMEDY}"
            )
        if not is_reported:
            on_wait(f"waiting for {count} CPU core(s), which other runs of gpt_parallel use")
            is_reported = True
        time.sleep(random.uniform(_PERIOD_S / 2, _PERIOD_S))  # two runs with half of the cores each must not collide


def _claim_free_cores(available: Sequence[int], count: int, claims: Claims) -> list[int]:
    free: list[int] = []
    for core in available:
        if len(free) < count and claims.claim(f"core/{core}"):
            free.append(core)
    return free


def _names(device: str) -> list[str]:
    return [f"\0gpt_parallel/{device}/{slot}" for slot in range(_NUM_SLOTS)]


def _bind(name: str) -> socket.socket | None:
    """Bind a socket, which holds the name until it is closed; None if the name is taken. Child processes lack it."""
    if not AVAILABLE:
        return socket.socket()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        bound.bind(name)
    except OSError as error:
        bound.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return bound


def _notify_others(device: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for name in _names(device):
            with suppress(OSError):  # the name is free, or its holder has unread datagrams enough
                sender.sendto(b"+", socket.MSG_DONTWAIT, name)


def _was_notified(bound: socket.socket) -> bool:
    with suppress(OSError):
        return bool(bound.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    return False


@contextmanager
def memory_released(uuids: Sequence[str]) -> Iterator[None]:
    """Wait, when the block ends in any way, until these GPUs use no more memory than when it began.

    The driver takes a moment to free the memory of ended processes, and the next run must not find too little.
    """
    before = _used_bytes(uuids)
    try:
        yield
    finally:
        wait_for_free_memory(uuids, before)


def wait_for_free_memory(uuids: Sequence[str], before: Sequence[int]) -> None:
    """Wait until each GPU uses as little memory as `before`; after five seconds, warn and return."""
    deadline = time.monotonic() + _MEMORY_WAIT_S
    while any(now > then + _MEMORY_SLACK_BYTES for now, then in zip(_used_bytes(uuids), before, strict=False)):
        if time.monotonic() > deadline:
            _LOGGER.warning("GPU memory is still in use %g s after the run ended", _MEMORY_WAIT_S)
            return
        time.sleep(_PERIOD_S / 4)


def _used_bytes(uuids: Sequence[str]) -> list[int]:
    """Memory in use by all programs on each GPU; empty where NVML does not report it."""
    with open_nvml() as (nvml, _):
        if nvml is None:
            return []
        try:
            return [int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used) for uuid in uuids]
        except nvml.NVMLError:
            return []
