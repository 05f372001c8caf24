"""All ranks of a run as threads of one process, so that many small models and layouts can be tried in little time."""

import queue
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import torch

from gpt_parallel.engine.comm.collectives import Collectives
from gpt_parallel.engine.generation.loop import Generator
from gpt_parallel.engine.generation.records import tokens_by_request
from gpt_parallel.engine.generation.sampling import Sampler
from gpt_parallel.engine.model.families import build
from gpt_parallel.engine.model.weights import load
from gpt_parallel.layout.batches import deal_lanes
from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.layout.part import part_of
from gpt_parallel.schema.run import ExecutionSpec, MeshSpec, RunSpec

DEADLINE_S = 60


class Wires:
    """What connects the ranks of one run."""

    def __init__(self, sizes):
        self.slots, self.barriers = {}, {}
        self._queues, self._lock = defaultdict(queue.Queue), threading.Lock()
        for rank in range(sizes.size):
            group = tuple(Mesh(sizes, rank).tensor_group())
            self.slots[group] = {}
            self.barriers.setdefault(group, threading.Barrier(len(group), timeout=DEADLINE_S))

    def queue(self, sender, receiver, channel):
        """One for both of its ends: without the lock each might make its own, and what is sent would be lost."""
        with self._lock:
            return self._queues[sender, receiver, channel]

    def cut(self):
        for barrier in self.barriers.values():
            barrier.abort()


class Threads:
    """A transport between threads."""

    waits_in = None

    def __init__(self, mesh, wires):
        self._mesh, self._wires = mesh, wires
        self._group = tuple(mesh.tensor_group())

    def gather(self, tensor):
        slots, barrier = self._wires.slots[self._group], self._wires.barriers[self._group]
        slots[self._mesh.shard] = tensor
        barrier.wait()
        gathered = torch.stack([slots[shard] for shard in range(len(self._group))])
        barrier.wait()
        return gathered

    def all_reduce(self, tensor):
        return self.gather(tensor).sum(0)

    def send(self, tensor, channel):
        self._wires.queue(self._mesh.rank, self._mesh.receiver(channel), channel).put(tensor.clone())

    def receive(self, shape, dtype, channel):
        received = self._wires.queue(self._mesh.sender(channel), self._mesh.rank, channel).get(timeout=DEADLINE_S)
        assert (tuple(received.shape), received.dtype) == (shape, dtype)
        return received


def generate(model, workload, pp=1, dp=1, tp=1, *, dtype="float32", linear="plain", capture=None):
    """The tokens of all requests by their ids, as a mesh generates them on CPU."""
    sizes = MeshSpec(pp=pp, dp=dp, tp=tp)
    spec = RunSpec(
        strategy="threads",
        mesh=sizes,
        model=model,
        workload=workload,
        execution=ExecutionSpec(device="cpu", dtype=dtype, backend="gloo"),
    )
    wires = Wires(sizes)
    with ThreadPoolExecutor(sizes.size) as pool:
        ranks = [pool.submit(_run, spec, Mesh(sizes, rank), wires, linear, capture) for rank in range(sizes.size)]
    tokens = {}
    for rank in ranks:
        tokens |= rank.result()
    return tokens


def _run(spec, mesh, wires, linear, capture):
    try:
        with torch.inference_mode():
            collectives = Collectives(mesh, Threads(mesh, wires))
            architecture, reduce = spec.model.architecture, collectives.all_reduce if spec.mesh.tp > 1 else None
            model = build(architecture, part_of(spec, mesh), getattr(torch, spec.execution.dtype), "cpu", reduce)
            load(model, spec.model)
            if linear == "packed":
                model.pack()
            sampler = Sampler(
                *(spec.workload.sampling, architecture, model.part.vocabulary, collectives, spec.mesh.tp),
                torch.device("cpu"),
            )
            lanes = deal_lanes(spec.workload, mesh)
            events = list(Generator(model, mesh, collectives, sampler, lanes, capture).run())
            chosen = [event for event in events if event.choice is not None]
            return tokens_by_request(chosen) if mesh.is_last_stage and mesh.shard == 0 else {}
    except BaseException:
        wires.cut()
        raise
