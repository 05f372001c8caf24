"""Which rank of the mesh runs where: tensor shards never leave a machine, replicas do so before stages do."""

from collections.abc import Sequence

from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.handshake import Hello
from gpt_parallel.schema.run import MeshSpec


def mesh_order(mesh: MeshSpec) -> list[int]:
    """The mesh's ranks, those of a replica together, those of a stage together within it."""
    return [
        (stage * mesh.dp + replica) * mesh.tp + shard
        for replica in range(mesh.dp)
        for stage in range(mesh.pp)
        for shard in range(mesh.tp)
    ]


def place(hosts: Sequence[str], hellos: Sequence[Hello], mesh: MeshSpec) -> list[int]:
    """The mesh rank of each process, given the machine it is on: machines are filled one after the other.

    Raises LaunchError where tensor shards would have to talk across machines.
    """
    first = {host: min(h.rank for at, h in zip(hosts, hellos, strict=True) if at == host) for host in set(hosts)}
    by_place = sorted(range(len(hosts)), key=lambda index: (first[hosts[index]], hellos[index].rank))
    for start in range(0, len(by_place), mesh.tp):
        if len({hosts[index] for index in by_place[start : start + mesh.tp]}) > 1:
            counts = ", ".join(f"{hosts.count(host)} on {host}" for host in sorted(first, key=lambda h: first[h]))
            raise LaunchError(
                f"tensor parallelism of {mesh.tp} must stay inside a machine, but the launcher started ranks {counts}; "
                f"have it start a multiple of {mesh.tp} on each (torchrun --nproc-per-node, srun --ntasks-per-node)"
            )
    ranks = [0] * len(hosts)
    for index, rank in zip(by_place, mesh_order(mesh), strict=True):
        ranks[index] = rank
    return ranks
