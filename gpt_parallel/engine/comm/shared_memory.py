"""A transport for processes of one x86 host: collectives in microseconds where gloo takes a millisecond.

All ranks map one anonymous memory segment. It has no name in any directory, so it is freed with its last process,
however that process ends. Every rank has a *line* of its own (64 bytes, so that no two share one
in a cache) for each thing it announces, and only ever counts it up; others wait until a line has come far enough.

A sum has two slots per rank, used in turn. A rank that announces sum k + 1 has read all of sum k, so slots of sum k may
be overwritten once everybody has announced k + 1, which every rank waits for in any case. All ranks add in the order of
shards, so the results are equal to the bit. A channel is a ring of slots with one writer and one reader.

Data is written before the line that announces it and read after it, without fences. x86 keeps stores in order and loads
in order (Intel SDM vol. 3, "Memory Ordering"); other processors do not, and use gloo.
"""

import mmap
import os
import time
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from gpt_parallel.engine.pipe import LostPeerError
from gpt_parallel.layout.mesh import Mesh

_LINE_WORDS = 8  # 64 bytes
_PROCESS, _BARRIER, _SUM, _WRITTEN, _READ, _NUM_LINES = 0, 1, 2, 3, 5, 7  # written and read: one line a channel
_SLOT_BYTES = 512 << 10

_SPINS, _SPINS_CROWDED = 4000, 20  # checks of a line before the core is yielded; 4000 take about 200 µs
_YIELDING_S, _NAP_S = 0.02, 0.0002  # how long to yield at each check, and how long to sleep between checks after that
_CHECK_PEER_S = 0.2


class SharedMemory:
    """Sums, gathers and channels through one segment. `oversubscribed`: there are more ranks than cores."""

    waits_in: str | None = "_await"

    def __init__(self, mesh: Mesh, rendezvous: str, timeout_s: float, *, oversubscribed: bool = False) -> None:
        self._mesh, self._timeout_s = mesh, timeout_s
        self._spins = _SPINS_CROWDED if oversubscribed else _SPINS
        self._group = mesh.tensor_group()
        self._peers = [rank for rank in self._group if rank != mesh.rank]
        self._num_sums = self._num_barriers = 0
        self._sent, self._received = [0, 0], [0, 0]
        self._views: dict[tuple[int, int, torch.Size, torch.dtype], Tensor] = {}

        num_ranks = mesh.sizes.size
        self._ring = max(8, 2 * mesh.sizes.pp)  # a stage has at most pp messages on their way
        self._slots_per_rank = 2 + 2 * self._ring
        words = num_ranks * _NUM_LINES * _LINE_WORDS
        self._first_slot = -(-words * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        size = self._first_slot + num_ranks * self._slots_per_rank * _SLOT_BYTES
        self._segment = _share(Path(rendezvous), size, timeout_s, create=mesh.rank == 0)
        self._lines = memoryview(self._segment)[: words * 8].cast("Q")
        self._announce(_PROCESS, os.getpid())
        for rank in range(num_ranks):
            self._await(rank, _PROCESS, 1)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes <= _SLOT_BYTES:
            return self._sum(tensor)
        flat = tensor.contiguous().view(-1)
        for piece in _pieces(flat):
            self._sum(piece)
        return flat.view(tensor.shape)

    def gather(self, tensor: Tensor) -> Tensor:
        if tensor.nbytes <= _SLOT_BYTES:
            return torch.stack(self._exchange(tensor))
        pieces = [torch.stack(self._exchange(piece)) for piece in _pieces(tensor.contiguous().view(-1))]
        return torch.cat(pieces, dim=1).view(len(self._group), *tensor.shape)

    def send(self, tensor: Tensor, channel: int) -> None:
        receiver = self._mesh.receiver(channel)
        pieces = [tensor] if tensor.nbytes <= _SLOT_BYTES else _pieces(tensor.contiguous().view(-1))
        for piece in pieces:
            number = self._sent[channel] = self._sent[channel] + 1
            self._await(receiver, _READ + channel, number - self._ring)
            self._view(self._mesh.rank, self._ring_slot(channel, number), piece.shape, piece.dtype).copy_(piece)
            self._announce(_WRITTEN + channel, number)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, channel: int) -> Tensor:
        received = torch.empty(shape, dtype=dtype)
        pieces = [received] if received.nbytes <= _SLOT_BYTES else _pieces(received.view(-1))
        sender = self._mesh.sender(channel)
        for piece in pieces:
            number = self._received[channel] = self._received[channel] + 1
            self._await(sender, _WRITTEN + channel, number)
            piece.copy_(self._view(sender, self._ring_slot(channel, number), piece.shape, dtype))
            self._announce(_READ + channel, number)
        return received

    def barrier(self) -> None:
        self._num_barriers += 1
        self._announce(_BARRIER, self._num_barriers)
        for rank in range(self._mesh.sizes.size):
            self._await(rank, _BARRIER, self._num_barriers)

    def close(self) -> None:
        """Nothing to do: the segment goes with the process."""

    def _sum(self, tensor: Tensor) -> Tensor:
        first, second, *others = self._exchange(tensor)
        torch.add(first, second, out=tensor)
        for other in others:
            tensor.add_(other)
        return tensor

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        """Every shard's tensor, in their order; the views are valid until the exchange after the next one."""
        number = self._num_sums = self._num_sums + 1
        views = [self._view(rank, number & 1, tensor.shape, tensor.dtype) for rank in self._group]
        views[self._mesh.shard].copy_(tensor)
        self._announce(_SUM, number)
        for rank in self._peers:
            self._await(rank, _SUM, number)
        return views

    def _ring_slot(self, channel: int, number: int) -> int:
        return 2 + channel * self._ring + number % self._ring

    def _view(self, rank: int, slot: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A slot as a tensor; kept, as making one costs more than a small sum."""
        key = (rank, slot, shape, dtype)
        view = self._views.get(key)
        if view is None:
            offset = self._first_slot + (rank * self._slots_per_rank + slot) * _SLOT_BYTES
            flat = torch.frombuffer(self._segment, dtype=dtype, count=prod(shape), offset=offset)
            view = self._views[key] = flat.view(shape)
        return view

    def _announce(self, line: int, value: int) -> None:
        self._lines[(self._mesh.rank * _NUM_LINES + line) * _LINE_WORDS] = value

    def _await(self, rank: int, line: int, value: int) -> None:
        """Wait until a rank's line has reached `value`. Raises LostPeerError if that rank's process has ended."""
        lines, index = self._lines, (rank * _NUM_LINES + line) * _LINE_WORDS
        for _ in range(self._spins):
            if lines[index] >= value:
                return
        _wait_patiently(lambda: lines[index] >= value, self._timeout_s, lambda: self._is_gone(rank), f"rank {rank}")

    def _is_gone(self, rank: int) -> bool:
        process = self._lines[rank * _NUM_LINES * _LINE_WORDS]
        return process != 0 and not _is_alive(process)


def _pieces(flat: Tensor) -> list[Tensor]:
    step = _SLOT_BYTES // flat.element_size()
    return [flat[start : start + step] for start in range(0, len(flat), step)]


def _wait_patiently(
    reached: Callable[[], bool], timeout_s: float, is_gone: Callable[[], bool] = lambda: False, whom: str = "rank 0"
) -> None:
    """Yield the core until `reached`, and sleep between checks after a while."""
    begin = checked = time.monotonic()
    while not reached():
        now = time.monotonic()
        if now - begin < _YIELDING_S:
            os.sched_yield()
        else:
            time.sleep(_NAP_S)
        if now - checked > _CHECK_PEER_S:
            checked = now
            if is_gone() and not reached():
                raise LostPeerError(f"{whom} has ended")
            if now - begin > timeout_s:
                raise LostPeerError(f"{whom} did not answer within {timeout_s:g} s")


def _is_alive(process: int) -> bool:
    """Whether a process is running. A zombie is not."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return False
    return status.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def _share(rendezvous: Path, size: int, timeout_s: float, *, create: bool) -> mmap.mmap:
    """The segment: one rank creates it and writes its location to `rendezvous`; the others open it."""
    if create:
        descriptor = os.memfd_create("gpt_parallel")
        os.ftruncate(descriptor, size)
        segment = mmap.mmap(descriptor, size)
        partial = rendezvous.with_name(rendezvous.name + ".partial")
        partial.write_text(f"/proc/{os.getpid()}/fd/{descriptor}")
        partial.replace(rendezvous)
        return segment  # the descriptor stays open for the others
    _wait_patiently(rendezvous.exists, timeout_s)
    descriptor = os.open(rendezvous.read_text(), os.O_RDWR)
    try:
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
