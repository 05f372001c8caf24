"""Which rank of the mesh runs on which machine."""

import random

import pytest

from gpt_parallel.launch.cluster.assignment import place
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.handshake import Hello
from gpt_parallel.schema.run import MeshSpec


def hello(rank, size):
    return Hello(run="r", version="1", rank=rank, size=size, local_rank=0, host="h", clock="c", pid=1, pid_space="p")


def machines_of(mesh, hosts, numbers=None):
    """The machine of every mesh rank; the launcher numbers processes as they stand, or as given."""
    numbers = numbers or range(len(hosts))
    ranks = place(hosts, [hello(number, len(hosts)) for number in numbers], mesh)
    assert sorted(ranks) == list(range(mesh.size))
    return [hosts[ranks.index(rank)] for rank in range(mesh.size)]


@pytest.mark.parametrize("hosts", ["aabb", "abab", "abba", "bbaa"])
def test_tensor_shards_stay_together_however_the_launcher_counts(hosts):
    """mpirun may number processes round robin."""
    first, second, third, fourth = machines_of(MeshSpec(pp=2, tp=2), list(hosts))

    assert first == second == hosts[0]
    assert third == fourth != first


def test_replicas_leave_a_machine_before_stages_do():
    # rank = stage · 2 + replica: the stages of a replica are ranks r and r + 2
    machines = machines_of(MeshSpec(pp=2, dp=2), list("aabb"))

    assert machines[0] == machines[2] != machines[1] == machines[3]


def test_stages_cross_where_a_replica_is_larger_than_a_machine():
    assert machines_of(MeshSpec(pp=4), list("aabb")) == list("aabb")


def test_the_order_of_calling_in_does_not_matter():
    numbers = list(range(8))
    random.Random(0).shuffle(numbers)
    hosts = ["ab"[number // 4] for number in numbers]

    assert machines_of(MeshSpec(pp=2, dp=2, tp=2), hosts, numbers) == list("aabbaabb")


@pytest.mark.parametrize(("hosts", "shown"), [("abbb", "1 on a, 3 on b"), ("abcd", "1 on a, 1 on b, 1 on c, 1 on d")])
def test_tensor_shards_on_two_machines_are_refused(hosts, shown):
    with pytest.raises(LaunchError, match=f"tensor parallelism of 2 must stay inside a machine.* as {shown}"):
        machines_of(MeshSpec(dp=2, tp=2), list(hosts))
