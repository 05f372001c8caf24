"""Checks the processes that reported as ranks, assigns each its place in the mesh, and sends it the job."""

from collections.abc import Sequence

from gpt_parallel.base.host import clock_id
from gpt_parallel.launch.cluster.connection import PendingRank, seconds_until
from gpt_parallel.launch.cluster.remote_process import RemoteProcess
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.watch import WatchedRank
from gpt_parallel.schema.handshake import Hello
from gpt_parallel.schema.run import Job, MeshSpec, RunSpec
from gpt_parallel.version import __version__


def check(pending: PendingRank, spec: RunSpec) -> None:
    """Raise LaunchError if the process cannot be a rank of this run."""
    hello, where = pending.hello, f"{pending.hello.host} ({pending.connection.host})"
    if hello.version != __version__:
        raise LaunchError(f"gpt_parallel is {__version__} here and {hello.version} on {where}; install one version")
    if hello.size != spec.num_gpus:
        raise LaunchError(
            f"the launcher started {hello.size} ranks, but the case needs {spec.num_gpus}; choose matching cases "
            f"(-k {hello.size}gpu, --gpt-num-gpus {hello.size}), or write {{num_gpus}} for the number in its command"
        )
    if hello.rank >= hello.size:
        raise LaunchError(
            f"the launcher gave a process on {where} rank {hello.rank}, but ranks go from 0 to {hello.size - 1}"
        )


def assign_ranks(pending_ranks: Sequence[PendingRank], job: Job, deadline: float) -> list[WatchedRank]:
    """Send every process its rank and the job. Raises LaunchError if one does not answer by the deadline."""
    try:
        return _assign(pending_ranks, job, deadline)
    except TimeoutError as error:
        limit = f"{job.spec.execution.timeout_s:g} s"
        raise LaunchError(f"the run did not start within {limit}: a rank does not answer") from error
    except (OSError, ValueError) as error:
        raise LaunchError(f"a rank broke the start-up protocol: {error}") from error


def _assign(pending_ranks: Sequence[PendingRank], job: Job, deadline: float) -> list[WatchedRank]:
    hosts = [f"{pending.hello.host}@{pending.connection.host}" for pending in pending_ranks]
    names = {pending.hello.host for pending in pending_ranks}
    places = place(hosts, [pending.hello for pending in pending_ranks], job.spec.mesh)
    by_rank = sorted(range(len(pending_ranks)), key=lambda index: places[index])
    for pending in pending_ranks:
        if pending.hello.clock != clock_id():
            pending.compare_clocks(deadline)
    first = pending_ranks[by_rank[0]].connection
    store = None
    if len(pending_ranks) > 1:
        store = f"{first.host}:{int(first.request({'serve_store': len(pending_ranks)}, 'store', deadline))}"
    ranks = []
    text = job.model_dump(mode="json")
    for rank, index in enumerate(by_rank):
        pending, here = pending_ranks[index], [i for i in by_rank if hosts[i] == hosts[index]]
        local = pending.hello.local_rank if pending.hello.local_rank is not None else here.index(index)
        order = {"job": text, "rank": rank, "local_rank": local, "store": store}
        pending.connection.send(order, seconds_until(deadline))
        pending.connection.socket.settimeout(None)
        host = pending.hello.host if len(names) == len(set(hosts)) else hosts[index]
        ranks.append(WatchedRank(rank, RemoteProcess(pending), pending.connection.fileno(), host=host))
    return ranks


def mesh_order(mesh: MeshSpec) -> list[int]:
    """The mesh's ranks in the order in which they are assigned: replica by replica, and stage by stage within it."""
    return [
        (stage * mesh.dp + replica) * mesh.tp + shard
        for replica in range(mesh.dp)
        for stage in range(mesh.pp)
        for shard in range(mesh.tp)
    ]


def place(hosts: Sequence[str], hellos: Sequence[Hello], mesh: MeshSpec) -> list[int]:
    """The mesh rank of each process, given its machine: machines are filled one after the other.

    Raises LaunchError if tensor shards would have to communicate across machines.
    """
    first = {host: min(h.rank for at, h in zip(hosts, hellos, strict=True) if at == host) for host in set(hosts)}
    by_place = sorted(range(len(hosts)), key=lambda index: (first[hosts[index]], hellos[index].rank))
    for start in range(0, len(by_place), mesh.tp):
        if len({hosts[index] for index in by_place[start : start + mesh.tp]}) > 1:
            counts = ", ".join(f"{hosts.count(host)} on {host}" for host in sorted(first, key=lambda h: first[h]))
            raise LaunchError(
                f"tensor parallelism of {mesh.tp} must stay inside a machine, but the ranks are distributed as "
                f"{counts}; start a multiple of {mesh.tp} on each machine (torchrun --nproc-per-node, "
                "srun --ntasks-per-node)"
            )
    ranks = [0] * len(hosts)
    for index, rank in zip(by_place, mesh_order(mesh), strict=True):
        ranks[index] = rank
    return ranks
