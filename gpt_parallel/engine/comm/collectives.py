"""The collectives of the engine: a small interface that counts calls and bytes, over one of the transports.

Transports move tensors and do not count: `process_groups.py` over torch.distributed, `shared_memory.py` between
processes of one host.
"""

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gpt_parallel.engine.comm.transport import FORWARD, RETURN, Rendezvous, Transport
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.schema.result import CollectiveCount
from gpt_parallel.schema.run import ExecutionSpec

T = TypeVar("T")


class Collectives:
    """All-reduce and gather within the tensor-parallel group, send and receive between stages, a world barrier.

    Every call is counted, with the bytes this rank contributes. A single-rank run has no transport and counts nothing.
    """

    def __init__(self, mesh: Mesh, transport: Transport | None) -> None:
        self._transport = transport
        self._sharded = mesh.sizes.tp > 1
        self._counted: Counter[tuple[str, int]] = Counter()

    @property
    def transport(self) -> Transport | None:
        return self._transport

    @property
    def reduces(self) -> bool:
        """Whether row-parallel products must be summed over other ranks."""
        return self._sharded

    def reset_counts(self) -> None:
        self._counted.clear()

    def counts(self) -> tuple[CollectiveCount, ...]:
        calls: Counter[str] = Counter()
        volume: Counter[str] = Counter()
        for (op, num_bytes), count in self._counted.items():
            calls[op] += count
            volume[op] += count * num_bytes
        return tuple(CollectiveCount(op=op, calls=calls[op], bytes=volume[op]) for op in sorted(calls))

    def without_counting(self, call: Callable[[], T]) -> tuple[T, "Counter[tuple[str, int]]"]:
        """Run `call` without counting. Returns its result and the counts it would have added."""
        before, self._counted = self._counted, Counter()
        try:
            return call(), self._counted
        finally:
            self._counted = before

    def add_counts(self, counted: "Counter[tuple[str, int]]") -> None:
        self._counted.update(counted)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the tensor-parallel group, bitwise equal on all its ranks; may use `tensor`'s memory."""
        if not self._sharded:
            return tensor
        self._counted["all_reduce", tensor.nbytes] += 1
        return self._connected.all_reduce(tensor)

    def gather(self, tensor: Tensor) -> Tensor:
        """[tp, *shape]: every shard's tensor, on every rank of the tensor-parallel group."""
        if not self._sharded:
            return tensor.unsqueeze(0)
        self._counted["gather", tensor.nbytes] += 1
        return self._connected.gather(tensor)

    def send_forward(self, tensor: Tensor) -> None:
        """Send activations to the next stage without waiting for it."""
        self._counted["send_activation", tensor.nbytes] += 1
        self._connected.send(tensor, FORWARD)

    def receive_forward(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The previous stage's activations."""
        return self._connected.receive(shape, dtype, FORWARD)

    def return_tokens(self, tokens: Tensor) -> None:
        """Send sampled tokens from the last stage to the first without waiting for it."""
        self._counted["send_token", tokens.nbytes] += 1
        self._connected.send(tokens, RETURN)

    def receive_tokens(self, shape: tuple[int, ...]) -> Tensor:
        return self._connected.receive(shape, torch.int64, RETURN)

    def barrier(self) -> None:
        """Wait for all ranks of the run. Not counted: it is part of measuring, not of generating."""
        if self._transport is not None:
            self._transport.barrier()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def _connected(self) -> Transport:
        assert self._transport is not None
        return self._transport


def connect(mesh: Mesh, execution: ExecutionSpec, device: torch.device, rendezvous: Rendezvous) -> Collectives:
    """Connect to the other ranks of the run through a file in a private directory, or through a store."""
    backend, timeout_s = execution.backend, execution.timeout_s
    if mesh.sizes.size == 1:
        return Collectives(mesh, None)
    if backend == "shm":
        from gpt_parallel.engine.comm.shared_memory import SharedMemory

        assert isinstance(rendezvous, str)
        return Collectives(mesh, SharedMemory(mesh, rendezvous, timeout_s, oversubscribed=execution.oversubscribed))
    from gpt_parallel.engine.comm.process_groups import Distributed

    return Collectives(mesh, Distributed(mesh, backend, device, rendezvous, timeout_s))
