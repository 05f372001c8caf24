"""How near decoding comes to the memory's limit: run `pytest benchmarks/test_bandwidth.py -s`.

Decoding reads every weight once per step, so a rank cannot be faster than its bytes ÷ its share of the bandwidth. The
bandwidth is what all ranks' cores read at the same time, from buffers far larger than any cache, measured before and
after each case. The formula of MBU is that of `gpt_parallel/layout/cost.py`; the saved file also has what a result says
by the ranks' own measure, which is briefer and after the rounds. The figures stand in docs/performance.md. CPU ranks
only.
"""

import os
import subprocess
import sys
from statistics import mean

import pytest

from gpt_parallel.launch.fork_server import server_environment
from gpt_parallel.layout.cost import bytes_per_step, messages_per_step, num_lanes

READ = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
import torch
torch.set_num_threads(1)
matrix, vector = torch.ones(16384, 8192), torch.ones(8192)
print("ready", flush=True)
for _ in sys.stdin:
    begin = time.monotonic()
    for _ in range(2):
        torch.mv(matrix, vector)
    print(2 * matrix.nbytes / (time.monotonic() - begin), flush=True)
"""


class Readers:
    """A process per rank's core that reads memory when told to; a context manager."""

    def __init__(self, num_ranks):
        cores = sorted(os.sched_getaffinity(0))[:num_ranks]  # as ranks are pinned
        self._share = len(cores) / num_ranks
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", READ, str(core)],
                env=server_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for core in cores
        ]
        self._answers()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.stdin.close()
            with process:
                pass

    def _answers(self):
        return [process.stdout.readline() for process in self._processes]

    def bandwidth(self):
        """Bytes per second and rank; ranks that share a core share its bandwidth."""
        for process in self._processes:
            process.stdin.write("read\n")
            process.stdin.flush()
        return min(float(answer) for answer in self._answers()) * self._share


@pytest.mark.parametrize("num_gpus", [1, 2, 4])
@pytest.mark.parametrize(
    "strategy", ["pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid", "full_model_parallel"]
)
def test_memory_bandwidth_utilisation(benchmark, gpt_suite, strategy, num_gpus):
    if gpt_suite.settings.device == "cuda":
        pytest.skip("measures CPU ranks")
    if num_gpus == 1 and strategy != "pure_data_parallel":
        pytest.skip("one device is pure data parallel only")
    spec = gpt_suite.spec(strategy, num_gpus)

    def measure():
        with Readers(num_gpus) as readers:
            readers.bandwidth()
            before = readers.bandwidth()
            result = gpt_suite.run(spec)
            return result, mean((before, readers.bandwidth()))

    result, bandwidth = benchmark.pedantic(measure, rounds=1)

    needed = max(bytes_per_step(spec, rank) for rank in result.ranks)
    mbu = num_lanes(spec) * needed / (result.figures.tpot_s * bandwidth)
    messages = messages_per_step(spec, result.ranks)
    benchmark.extra_info.update(bytes_per_step=needed, bandwidth_bytes_per_s=bandwidth, mbu=mbu, **messages)
    benchmark.extra_info["mbu_by_the_ranks_own_measure"] = result.efficiency.mbu
    print(
        f"\n| {strategy} | {spec.mesh} | {needed / 1e6:.0f} MB | "
        f"{', '.join(f'{calls:.2g} {op}' for op, calls in messages.items()) or 'none'} | "
        f"{result.figures.tpot_s * 1000:.1f} ms | {bandwidth / 1e9:.1f} GB/s | {mbu:.0%} |"
    )
    assert 0 < mbu <= 1.2
