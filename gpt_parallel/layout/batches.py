"""The assignment of requests to batches, replicas and pipeline lanes."""

from dataclasses import dataclass

from gpt_parallel.layout.mesh import Mesh
from gpt_parallel.schema.run import Request, WorkloadSpec


@dataclass(frozen=True)
class Batch:
    """Requests that one lane generates together."""

    batch_id: str
    requests: tuple[Request, ...]

    @property
    def num_steps(self) -> int:
        return max(request.max_new_tokens for request in self.requests)

    @property
    def prompt_length(self) -> int:
        return max(len(request.prompt_ids) for request in self.requests)


def deal_lanes(workload: WorkloadSpec, mesh: Mesh) -> list[list[Batch]]:
    """The batches of this rank's replica, dealt to pp lanes.

    Too few batches are split, widest first, so that every replica and lane has work while rows suffice.
    """
    size = workload.batch_size
    starts = range(0, len(workload.requests), size)
    batches = [Batch(str(i), workload.requests[start : start + size]) for i, start in enumerate(starts)]
    own = _split(batches, mesh.sizes.dp)[mesh.replica :: mesh.sizes.dp]
    own = _split(own, mesh.sizes.pp)
    return [own[lane :: mesh.sizes.pp] for lane in range(min(mesh.sizes.pp, len(own)))]


def _split(batches: list[Batch], count: int) -> list[Batch]:
    """At least `count` batches, by halving the widest while it has more than one row."""
    batches = list(batches)
    while 0 < len(batches) < count:
        widest = max(range(len(batches)), key=lambda index: len(batches[index].requests))
        batch = batches[widest]
        if len(batch.requests) == 1:
            break
        middle = (len(batch.requests) + 1) // 2
        halves = (batch.requests[:middle], batch.requests[middle:])
        batches[widest : widest + 1] = [Batch(f"{batch.batch_id}.{i}", half) for i, half in enumerate(halves)]
    return batches
