"""Latency and bandwidth of the collectives, measured without a model by two ranks for `gpt-parallel doctor`.

Every result is checked, so a transport that delivers wrong numbers is found before any run.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from gpt_parallel.engine.comm.collectives import Collectives, connect
from gpt_parallel.engine.comm.transport import Rendezvous
from gpt_parallel.engine.pipe import StatusPipe
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.schema.result import CollectiveProbe, RankPlace, RankReport
from gpt_parallel.schema.run import RunSpec

# A decode step's activations, as gpt2 has them for a batch of four, and something that fills the line.
_SHAPES = {(4, 768): 100, (2048, 1024): 5}
_WARM_UP = 3
_TOKEN = 7


class _Operation(NamedTuple):
    """An operation to time, and the first and last number it must deliver. Every rank sends its own rank + 1."""

    name: str
    run: Callable[[Tensor], Tensor]
    expected: tuple[float, float]


def time_collectives(
    spec: RunSpec, rank: int, device: torch.device, rendezvous: Rendezvous, pipe: StatusPipe
) -> RankReport:
    """Time the collectives of the spec's mesh: sums and gathers if it is tensor parallel, sends if it is pipelined.

    Raises ArithmeticError if a result is wrong.
    """
    mesh = Mesh(spec.mesh, rank)
    pipe.enter("connect")
    collectives = connect(mesh, spec.execution, device, rendezvous)
    pipe.enter("time collectives")
    probes = [
        _probe(operation, torch.full(shape, float(rank + 1), device=device), count, collectives)
        for operation in _operations(collectives, mesh)
        for shape, count in _SHAPES.items()
    ]
    pipe.enter("finish")
    collectives.barrier()
    collectives.close()
    return RankReport(
        place=RankPlace(
            rank=rank,
            stage=mesh.stage,
            replica=mesh.replica,
            shard=mesh.shard,
            device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            num_threads=torch.get_num_threads(),
            torch_version=torch.__version__,
        ),
        probed=tuple(probes),
    )


def _operations(collectives: Collectives, mesh: Mesh) -> list[_Operation]:
    if mesh.sizes.tp > 1:
        ranks = mesh.tensor_group()
        total = float(sum(rank + 1 for rank in ranks))
        return [
            _Operation("all_reduce", collectives.all_reduce, (total, total)),
            _Operation("gather", collectives.gather, (ranks[0] + 1.0, ranks[-1] + 1.0)),
        ]
    sent = float(_TOKEN if mesh.is_first_stage else mesh.sender(0) + 1)
    return [_Operation("send_receive", lambda x: _there_and_back(x, collectives, mesh), (sent, sent))]


def _there_and_back(x: Tensor, collectives: Collectives, mesh: Mesh) -> Tensor:
    """Send activations to the next stage and one token per row back. Returns what this rank received."""
    rows = x.shape[0]
    if mesh.is_first_stage:
        collectives.send_forward(x)
        return collectives.receive_tokens((rows,))
    received = collectives.receive_forward(tuple(x.shape), x.dtype)
    collectives.return_tokens(torch.full((rows,), _TOKEN, device=x.device))
    return received


def _probe(operation: _Operation, x: Tensor, count: int, collectives: Collectives) -> CollectiveProbe:
    seconds = []
    for _ in range(_WARM_UP + count):
        sent = x.clone()
        collectives.barrier()
        begin = _now(x.device)
        received = operation.run(sent)
        seconds.append(_now(x.device) - begin)
        ends = tuple(received.flatten()[[0, -1]].tolist())
        if ends != operation.expected:
            raise ArithmeticError(f"{operation.name} delivered {ends} where {operation.expected} was due")
    return CollectiveProbe(op=operation.name, bytes=x.nbytes, seconds=median(seconds[_WARM_UP:]))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
