"""Fault injection: tests make a rank fail in a chosen way in a chosen phase.

Only a run with a fault uses this class, so the rest of the engine has no code for faults. Within a pass, forwards are
counted by replacing a method of the one model object.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from gpt_parallel.engine.model.interface import DecoderPart
from gpt_parallel.engine.rank import Rank
from gpt_parallel.schema.fault import FaultSpec

_PHASES = {
    "connect": "connect",
    "load": "load weights",
    "verification": "generate for verification",
    "warmup": "warm up",
    "round": "round ",
    "decode": "round ",
    "finish": "finish",
}
_NUM_FORWARDS = {
    "verification": 3,
    "decode": 3,
}  # after a prompt or two and a token or two; other phases fail at their start
_NEVER = 1 << 62  # no line of shared memory reaches it


class FaultyRank(Rank):
    """A rank that triggers its run's fault once."""

    def __init__(self, *arguments: Any) -> None:
        self._forwards_left = 0
        self._is_done = False
        super().__init__(*arguments)

    @property
    def _fault(self) -> FaultSpec:
        assert self._spec.execution.fault is not None
        return self._spec.execution.fault

    @contextmanager
    def _phase(self, name: str, key: str | None = None) -> Iterator[None]:
        with super()._phase(name, key):
            if not self._is_done and name.startswith(_PHASES[self._fault.phase]):
                self._forwards_left = _NUM_FORWARDS.get(self._fault.phase, 0)
                if self._forwards_left == 0:
                    self._act()
            yield
            self._forwards_left = 0

    def _load(self) -> DecoderPart:
        model = super()._load()
        blocks = model.blocks

        def counted(*arguments: Any) -> Tensor:
            self._forwards_left -= 1
            if self._forwards_left == 0:
                self._act()
            return blocks(*arguments)

        model.blocks = counted  # type: ignore[method-assign, assignment]
        return model

    def _act(self) -> None:
        self._is_done = True
        _ACTIONS[self._fault.action](self)

    def raise_error(self) -> NoReturn:
        raise RuntimeError("injected error")

    def run_out_of_memory(self) -> NoReturn:
        raise torch.OutOfMemoryError("simulated: CUDA out of memory. Tried to allocate more than there is.")

    def hang(self) -> NoReturn:
        while True:
            signal.pause()  # which ends when the rank is asked for its stacks

    def hang_in_collective(self) -> None:
        """Wait for a message that no peer sends, inside the transport."""
        transport, peer = self._collectives.transport, (self._mesh.rank + 1) % self._mesh.sizes.size
        assert transport is not None
        if transport.waits_in is None:
            dist.recv(torch.empty(1, device=self._device), peer)
        else:
            getattr(transport, transport.waits_in)(peer, 0, _NEVER)

    def corrupt_output(self) -> None:
        """Replace the next logits, or the activations for the next stage, with NaN."""
        name = "head" if self._model.part.has_head else "blocks"
        method: Callable[..., Tensor] = getattr(self._model, name)

        def spoilt(*arguments: Any) -> Tensor:
            setattr(self._model, name, method)
            return torch.full_like(method(*arguments), float("nan"))

        setattr(self._model, name, spoilt)


def _send(number: int) -> Callable[[FaultyRank], None]:
    return lambda _: os.kill(os.getpid(), number)


def _exit(code: int) -> Callable[[FaultyRank], None]:
    return lambda _: os._exit(code)


_ACTIONS: dict[str, Callable[[FaultyRank], None]] = {
    "raise": FaultyRank.raise_error,
    "sigkill": _send(signal.SIGKILL),
    "sigstop": _send(signal.SIGSTOP),
    "hang": FaultyRank.hang,
    "hang_in_collective": FaultyRank.hang_in_collective,
    "exit_0": _exit(0),
    "exit_3": _exit(3),
    "nan_logits": FaultyRank.corrupt_output,
    "out_of_memory": FaultyRank.run_out_of_memory,
}
