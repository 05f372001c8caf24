"""The engine's only way to talk to other ranks: a small, counted interface over torch.distributed."""

from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from gpt_parallel.engine.mesh import Mesh
from gpt_parallel.result import CollectiveCount

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Collectives:
    """All-reduce and gather within the tensor-parallel group, send and receive between stages, a world barrier.

    Every call is counted, with the bytes this rank contributes. With one rank nothing is initialised and nothing
    is counted. gloo moves CPU memory only, so device tensors are staged through it where ranks share a GPU.
    """

    def __init__(self, mesh: Mesh, backend: str, device: torch.device, store_path: str, timeout_s: float) -> None:
        self._mesh = mesh
        self._device = device
        self._staged = device.type != "cpu" and backend == "gloo"
        self._calls: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._in_flight: list[tuple[dist.Work, torch.Tensor]] = []
        self._tensor_group: ProcessGroup | None = None
        self._forward_group: ProcessGroup | None = None
        self._return_group: ProcessGroup | None = None
        if mesh.sizes.size > 1:
            self._connect(backend, store_path, timedelta(seconds=timeout_s))

    def _connect(self, backend: str, store_path: str, timeout: timedelta) -> None:
        size = self._mesh.sizes.size
        store = dist.FileStore(store_path, size)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self._mesh.rank, world_size=size, timeout=timeout)
        if self._mesh.sizes.tp > 1:
            for ranks in self._mesh.tensor_groups():
                group = dist.new_group(ranks, timeout=timeout)
                if self._mesh.rank in ranks:
                    self._tensor_group = group
        if self._mesh.sizes.pp > 1:
            # NCCL orders all traffic of a pair on one stream. A stage that sends lane 1 forward while its peer sends
            # lane 0's token back would deadlock there, so each direction has its own communicator.
            self._forward_group = dist.new_group(timeout=timeout)
            self._return_group = dist.new_group(timeout=timeout)

    def close(self) -> None:
        if self._mesh.sizes.size > 1:
            self._finish_sends()
            dist.destroy_process_group()

    def reset_counts(self) -> None:
        self._calls.clear()
        self._bytes.clear()

    def counts(self) -> tuple[CollectiveCount, ...]:
        return tuple(
            CollectiveCount(op=op, calls=calls, bytes=self._bytes[op]) for op, calls in sorted(self._calls.items())
        )

    def _count(self, op: str, tensor: torch.Tensor) -> None:
        self._calls[op] += 1
        self._bytes[op] += tensor.numel() * tensor.element_size()

    def _stage_out(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.cpu() if self._staged else tensor.contiguous()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over the tensor-parallel group, in place where the transport can; bitwise equal on all its ranks."""
        if self._tensor_group is None:
            return tensor
        self._count("all_reduce", tensor)
        staged = self._stage_out(tensor)
        dist.all_reduce(staged, group=self._tensor_group)
        return staged.to(self._device)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[tp, *shape]: every shard's tensor, on every rank of the tensor-parallel group."""
        if self._tensor_group is None:
            return tensor.unsqueeze(0)
        self._count("gather", tensor)
        staged = self._stage_out(tensor)
        parts = [torch.empty_like(staged) for _ in range(self._mesh.sizes.tp)]
        dist.all_gather(parts, staged, group=self._tensor_group)
        return torch.stack(parts).to(self._device)

    def send_forward(self, tensor: torch.Tensor) -> None:
        """Hand activations to the next stage, without waiting for it."""
        self._send("send_activation", tensor, self._mesh.stage + 1, self._forward_group)

    def receive_forward(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The previous stage's activations."""
        return self._receive(shape, dtype, self._mesh.stage - 1, self._forward_group)

    def return_tokens(self, tokens: torch.Tensor) -> None:
        """Hand sampled tokens from the last stage to the first, without waiting for it."""
        self._send("send_token", tokens, 0, self._return_group)

    def receive_tokens(self, shape: tuple[int, ...]) -> torch.Tensor:
        return self._receive(shape, torch.int64, self._mesh.sizes.pp - 1, self._return_group)

    def _send(self, op: str, tensor: torch.Tensor, stage: int, group: "ProcessGroup | None") -> None:
        self._count(op, tensor)
        staged = self._stage_out(tensor)
        self._in_flight = [(work, kept) for work, kept in self._in_flight if not work.is_completed()]
        work = dist.isend(staged, self._mesh.peer(stage), group=group)
        assert work is not None
        self._in_flight.append((work, staged))  # the buffer must live until it has left

    def _receive(
        self, shape: tuple[int, ...], dtype: torch.dtype, stage: int, group: "ProcessGroup | None"
    ) -> torch.Tensor:
        received = torch.empty(shape, dtype=dtype, device="cpu" if self._staged else self._device)
        dist.recv(received, self._mesh.peer(stage), group=group)
        return received.to(self._device)

    def _finish_sends(self) -> None:
        for work, _ in self._in_flight:
            work.wait()
        self._in_flight.clear()

    def barrier(self) -> None:
        """Wait for all ranks of the run. Not counted: it is part of measuring, not of generating."""
        if self._mesh.sizes.size > 1:
            self._finish_sends()
            dist.barrier(device_ids=[self._device.index] if dist.get_backend() == "nccl" else None)
