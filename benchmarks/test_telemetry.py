"""What telemetry costs: run `pytest benchmarks/test_telemetry.py -s`.

Launches with and without it take turns, so that whatever else changes on the machine meets both alike; a pair is a
ratio of throughputs, and the median of the ratios is what telemetry costs. The figures stand in docs/performance.md.
"""

from statistics import median

import pytest

PAIRS = 15
MOST = 0.01


@pytest.mark.parametrize(("strategy", "num_gpus"), [("pure_data_parallel", 1), ("tensor_data_hybrid", 2)])
def test_telemetry_costs_at_most_a_hundredth(benchmark, gpt_suite, strategy, num_gpus):
    spec = gpt_suite.spec(strategy, num_gpus)
    ratios = []

    def throughput(telemetry):
        execution = spec.execution.model_copy(update={"telemetry": telemetry})
        result = gpt_suite.run(spec.model_copy(update={"execution": execution}))
        assert (result.ranks[0].diagnostics.telemetry is not None) == telemetry
        return result.figures.throughput_tok_s

    def take_turns():
        throughput(True)
        for pair in range(PAIRS):
            order = (True, False) if pair % 2 else (False, True)
            found = {telemetry: throughput(telemetry) for telemetry in order}
            ratios.append(found[True] / found[False])

    benchmark.pedantic(take_turns, rounds=1)

    ratios.sort()
    benchmark.extra_info.update(ratios=ratios)
    print(
        f"\n{spec.name}: with telemetry {median(ratios):.4f}× the throughput without "
        f"({PAIRS} pairs, {ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    assert median(ratios) >= 1 - MOST
