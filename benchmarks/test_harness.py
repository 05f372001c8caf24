"""What a launch costs before work begins: run `pytest benchmarks/test_harness.py -s`."""

import time

import pytest

from gpt_parallel.launch import fork_server
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite

NUM_RANKS = 4
LIMIT_S = {"cold": 4.0, "warm": 1.0}


class Ready(Exception):  # noqa: N818
    """Every rank has its weights and starts to generate."""


def seconds_to_ready():
    """From `launch` to the first generation on the last of the ranks, which are then stopped."""
    loaded, ready = set(), set()

    def watch(rank, phase):
        if phase == "load weights":
            loaded.add(rank)
        elif rank in loaded:
            ready.add(rank)
        if len(ready) == NUM_RANKS:
            raise Ready

    suite = Suite(make_settings("smoke", {"model": "gpt2-nano", "device": "cpu", "verify": False}), watch)
    spec = suite.spec("full_model_parallel", NUM_RANKS)
    begin = time.monotonic()
    with pytest.raises(Ready):
        suite.run(spec)
    return time.monotonic() - begin


@pytest.mark.parametrize("server", ["cold", "warm"])
def test_ranks_are_ready_soon(benchmark, server):
    seconds = []

    def launch():
        if server == "cold":
            fork_server.stop()
        seconds.append(seconds_to_ready())

    benchmark.pedantic(launch, rounds=5, warmup_rounds=1)
    fork_server.stop()

    timed = sorted(seconds[-5:])
    benchmark.extra_info.update(num_ranks=NUM_RANKS, seconds_to_ready=timed)
    print(
        f"\n{NUM_RANKS} ranks of gpt2-nano ready, server {server}: median {timed[2]:.3f} s, slowest {timed[-1]:.3f} s"
    )
    assert timed[2] <= LIMIT_S[server]
