"""What talking costs, and whether shared memory holds: run `pytest benchmarks/test_collectives.py -s`.

The figures stand in docs/performance.md. A rank owns a core, as in the main job; four ranks share the two cores of a
small machine.
"""

import os

import pytest

from tests.support.transports import run_ranks

SUM_GOAL_S = {2: 30e-6, 4: 120e-6}
HOP_GOAL_S = 30e-6


def slowest(found, name):
    return max(rank[name] for rank in found)


@pytest.mark.benchmark(group="all-reduce of [4, 768] float32")
@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_all_reduce(benchmark, tmp_path, backend, num_ranks):
    count = 2000 if backend == "shm" else 100

    found = benchmark.pedantic(run_ranks, args=("latency", backend, 1, num_ranks, tmp_path, count), rounds=1)

    seconds = benchmark.extra_info["all_reduce_s"] = slowest(found, "all_reduce_s")
    print(f"\n{backend}, {num_ranks} ranks on {os.cpu_count()} cores: {seconds * 1e6:.1f} µs")
    if backend == "shm":
        assert seconds <= SUM_GOAL_S[num_ranks]


@pytest.mark.benchmark(group="12 KB from stage to stage")
@pytest.mark.parametrize("backend", ["shm", "gloo"])
def test_hop(benchmark, tmp_path, backend):
    count = 2000 if backend == "shm" else 200

    found = benchmark.pedantic(run_ranks, args=("latency", backend, 2, 1, tmp_path, count), rounds=1)

    seconds = benchmark.extra_info["hop_s"] = slowest(found, "hop_s")
    print(f"\n{backend}: {seconds * 1e6:.1f} µs")
    if backend == "shm":
        assert seconds <= HOP_GOAL_S


@pytest.mark.parametrize(("pp", "tp"), [(1, 2), (2, 2)])
def test_a_million_mixed_operations(benchmark, tmp_path, pp, tp):
    """Random sizes and types, every result checked against what it must be."""
    found = benchmark.pedantic(
        run_ranks, args=("mixed", "shm", pp, tp, tmp_path, 1_000_000), kwargs={"timeout": 3000}, rounds=1
    )

    for stage in range(pp):
        assert len({rank["digest"] for rank in found[stage * tp : (stage + 1) * tp]}) == 1
