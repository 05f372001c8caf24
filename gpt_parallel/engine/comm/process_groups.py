"""The portable transport: torch.distributed's process groups over gloo or NCCL."""

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_parallel.engine.comm.transport import FORWARD, RETURN, Rendezvous
from gpt_parallel.layout.mesh import Mesh

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Distributed:
    """Process groups for the mesh. gloo moves CPU memory only, so tensors of a shared GPU are staged through it."""

    waits_in: str | None = None

    def __init__(
        self, mesh: Mesh, backend: str, device: torch.device, rendezvous: Rendezvous, timeout_s: float
    ) -> None:
        self._mesh, self._device = mesh, device
        self._staged = device.type != "cpu" and backend == "gloo"
        self._in_flight: list[tuple[dist.Work, Tensor]] = []
        timeout = timedelta(seconds=timeout_s)
        store = rendezvous
        if isinstance(store, str):
            store = dist.FileStore(store, mesh.sizes.size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=mesh.rank, world_size=mesh.sizes.size, timeout=timeout)
        self._tensor_group: ProcessGroup | None = None
        if mesh.sizes.tp > 1:
            for ranks in mesh.tensor_groups():
                group = dist.new_group(ranks, timeout=timeout)
                if mesh.rank in ranks:
                    self._tensor_group = group
        # NCCL orders all traffic of a pair on one stream. A stage that sends lane 1 forward while its peer sends
        # lane 0's token back would deadlock there, so each channel has its own communicator.
        self._channels = [dist.new_group(timeout=timeout) for _ in range(2)] if mesh.sizes.pp > 1 else []
        for channel in range(len(self._channels)):
            self._greet(channel)

    def _greet(self, channel: int) -> None:
        """Exchange a first message on every channel: NCCL connects a pair then, before anything is timed."""
        is_first, is_last = self._mesh.is_first_stage, self._mesh.is_last_stage
        hello = torch.zeros(1, device=self._device)
        receives, sends = (not is_first, not is_last) if channel == FORWARD else (is_first, is_last)
        if receives and channel == FORWARD:
            self.receive((1,), hello.dtype, channel)
        if sends:
            self.send(hello, channel)
        if receives and channel == RETURN:
            self.receive((1,), hello.dtype, channel)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        staged = self._stage_out(tensor)
        dist.all_reduce(staged, group=self._tensor_group)
        return staged.to(self._device)

    def gather(self, tensor: Tensor) -> Tensor:
        staged = self._stage_out(tensor)
        parts = [torch.empty_like(staged) for _ in range(self._mesh.sizes.tp)]
        dist.all_gather(parts, staged, group=self._tensor_group)
        return torch.stack(parts).to(self._device)

    def send(self, tensor: Tensor, channel: int) -> None:
        staged = self._stage_out(tensor)
        self._in_flight = [(work, kept) for work, kept in self._in_flight if not work.is_completed()]
        work = dist.isend(staged, self._mesh.receiver(channel), group=self._channels[channel])
        assert work is not None
        self._in_flight.append((work, staged))  # the buffer must live until it has left

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, channel: int) -> Tensor:
        received = torch.empty(shape, dtype=dtype, device="cpu" if self._staged else self._device)
        dist.recv(received, self._mesh.sender(channel), group=self._channels[channel])
        return received.to(self._device)

    def barrier(self) -> None:
        self._finish_sends()
        dist.barrier(device_ids=[self._device.index] if dist.get_backend() == "nccl" else None)

    def close(self) -> None:
        self._finish_sends()
        dist.destroy_process_group()

    def _stage_out(self, tensor: Tensor) -> Tensor:
        return tensor.cpu() if self._staged else tensor.contiguous()

    def _finish_sends(self) -> None:
        for work, _ in self._in_flight:
            work.wait()
        self._in_flight.clear()
