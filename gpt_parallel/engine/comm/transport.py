"""The interface of a transport, which moves tensors between ranks."""

from typing import Protocol, Union

import torch
import torch.distributed as dist
from torch import Tensor

# Where ranks find each other; None for a single rank.
Rendezvous = Union[str, "dist.Store", None]  # type: ignore[name-defined]
FORWARD, RETURN = 0, 1  # channels between stages: activations to the next one, tokens from the last to the first


class Transport(Protocol):
    """Moves tensors between ranks. `waits_in` names the method that waits for a peer, if there is one."""

    waits_in: str | None

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the tensor-parallel group, bitwise equal on all its ranks; may use `tensor`'s memory."""

    def gather(self, tensor: Tensor) -> Tensor:
        """[tp, *shape]: every shard's tensor, in the order of shards."""

    def send(self, tensor: Tensor, channel: int) -> None:
        """Send a tensor, which must not be changed before the next barrier.

        Does not wait for the receiver, unless more is on its way than the transport can hold (megabytes).
        """

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype, channel: int) -> Tensor:
        """The next tensor of a channel; shape and dtype are those that were sent."""

    def barrier(self) -> None:
        """Wait for all ranks of the run."""

    def close(self) -> None:
        """Release all resources. All ranks have passed a barrier before."""
