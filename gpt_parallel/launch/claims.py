"""Two runs at once on one machine do not share devices unknowingly.

A claim is the name of an abstract Unix socket. It is no file, runs of all users see it, and the kernel takes it back
from a process however that ends. Such names belong to a network namespace: runs in containers with networks of their
own do not see each other's.

A device has a few names, so that those who share it have one each: it is free when none of them is taken. Who comes to
share it sends all the others a datagram, from which they learn that their figures are not those of a device alone.
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

_NUM_SLOTS = 8  # more runs at once on one device are not seen
_PERIOD_S = 0.2  # there is nothing to wait on
_MEMORY_WAIT_S = 5.0
_MEMORY_SLACK_BYTES = 64 << 20  # other programs on the GPU come and go
_LOGGER = logging.getLogger("gpt_parallel")


class Claims(ExitStack):
    """Devices that are kept until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[socket.socket] = []
        self._found_others = False

    def claim(self, device: str) -> bool:
        """Keep a device; False if anybody uses it, sharing it or not.

        The first name is what is kept. Who has it, and then finds all others free, came before whoever shares it.
        """
        kept, *others = _names(device)
        with ExitStack() as tried:
            if (name := _bind(kept)) is None:
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
        """Keep one of a busy device's names, so that it stays busy when its first user ends; none if all are taken."""
        self._found_others = True
        if name := next(filter(None, map(_bind, _names(device))), None):
            self._names.append(self.enter_context(name))
        _tell_others(device)

    @property
    def are_shared(self) -> bool:
        """Whether other runs used any of the devices when they were claimed, or have come to since."""
        return self._found_others or any(map(_is_told, self._names))


class Claimed(NamedTuple):
    """The cores to deal to a launch's ranks, and its claims on them or on GPUs."""

    cores: tuple[int, ...]
    claims: Claims

    @property
    def are_shared(self) -> bool:
        return self.claims.are_shared


@contextmanager
def claim_devices(execution: ExecutionSpec, num_ranks: int, when_busy: WhenBusy, on_wait: OnWait) -> Iterator[Claimed]:
    """Claim a launch's devices until the block ends.

    GPUs are let go when their memory is free again. Raises SpecError if they are busy and `when_busy` is "refuse".
    """
    if execution.device == "cuda":
        uuids = [gpu.uuid for gpu in cuda_devices()[:num_ranks]]
        policy: Policy = "wait" if when_busy == "auto" else when_busy
        with claim_gpus(uuids, policy, on_wait) as claims, memory_given_back(uuids):
            yield Claimed(available_cores(), claims)
        return
    count = num_ranks * execution.cores_per_rank
    with claim_cores(available_cores(), count, "share" if when_busy == "auto" else when_busy, on_wait) as claimed:
        yield claimed


@contextmanager
def claim_gpus(uuids: Sequence[str], when_busy: Policy, on_wait: OnWait) -> Iterator[Claims]:
    """Claim all of these GPUs."""
    with Claims() as claims:
        for uuid in sorted(set(uuids)):  # in one order everywhere: two runs never wait for each other
            _claim_gpu(claims, uuid, f"GPU {uuids.index(uuid)}", when_busy, on_wait)
        yield claims


def _claim_gpu(claims: Claims, uuid: str, title: str, when_busy: Policy, on_wait: OnWait) -> None:
    is_told = False
    while not claims.claim(f"gpu/{uuid}"):
        if when_busy == "share":
            claims.share(f"gpu/{uuid}")
            return
        if when_busy == "refuse":
            raise SpecError(
                f"{title} ({uuid}) is used by another run of gpt_parallel; choose other GPUs with "
                "CUDA_VISIBLE_DEVICES, or let when-busy be 'wait' or 'share'"
            )
        if not is_told:
            on_wait(f"waiting for {title}, which another run of gpt_parallel uses")
            is_told = True
        time.sleep(_PERIOD_S)


@contextmanager
def claim_cores(available: Sequence[int], count: int, when_busy: Policy, on_wait: OnWait) -> Iterator[Claimed]:
    """Claim and yield `count` of the available cores, or all where there are fewer.

    Those that nobody uses come first; with "share" the rest are cores of other runs, and `on_wait` is told.
    """
    count, is_told = min(count, len(available)), False
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
                f"{count} CPU core(s) are needed, and other runs of gpt_parallel leave {len(free)} of "
                f"{len(available)}; let when-busy be 'wait' or 'share'"
            )
        if not is_told:
            on_wait(f"waiting for {count} CPU core(s), which other runs of gpt_parallel use")
            is_told = True
        time.sleep(random.uniform(_PERIOD_S / 2, _PERIOD_S))  # two that got a half each must not meet again


def _claim_free_cores(available: Sequence[int], count: int, claims: Claims) -> list[int]:
    free: list[int] = []
    for core in available:
        if len(free) < count and claims.claim(f"core/{core}"):
            free.append(core)
    return free


def _names(device: str) -> list[str]:
    return [f"\0gpt_parallel/{device}/{slot}" for slot in range(_NUM_SLOTS)]


def _bind(name: str) -> socket.socket | None:
    """To be closed to give it back; None if somebody else has it. Programs that are started do not inherit it."""
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


def _tell_others(device: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
        for name in _names(device):
            with suppress(OSError):  # nobody has it, or who has it has been told often
                teller.sendto(b"+", socket.MSG_DONTWAIT, name)


def _is_told(bound: socket.socket) -> bool:
    with suppress(OSError):
        return bool(bound.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
    return False


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
    with open_nvml() as (nvml, _):
        if nvml is None:
            return []
        try:
            return [int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByUUID(uuid)).used) for uuid in uuids]
        except nvml.NVMLError:
            return []
