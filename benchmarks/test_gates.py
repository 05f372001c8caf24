"""How often the gate and the A/B rule err, on synthetic launches: run `pytest benchmarks/test_gates.py -s`.

The figures stand in docs/gates.md.
"""

import pytest

from gpt_parallel.report.compare.gate import ALPHA
from tests.support.simulation import ab_rates, gate_rates


def say(title, rates):
    print(f"\n{title}: " + ", ".join(f"{name} {value:.4g}" for name, value in rates.items()))


@pytest.mark.parametrize(
    ("launches", "spread", "outliers", "slowdown"),
    [
        *((6, 0.02, 0.0, slowdown) for slowdown in (1.0, 1.02, 1.05, 1.07, 1.1)),
        *((3, 0.02, 0.0, slowdown) for slowdown in (1.0, 1.1)),
        *((6, 0.05, 0.0, slowdown) for slowdown in (1.0, 1.1)),
        *((6, 0.02, 0.05, slowdown) for slowdown in (1.0, 1.1)),
    ],
)
def test_gate_errs_seldom(benchmark, launches, spread, outliers, slowdown):
    rates = benchmark.pedantic(gate_rates, args=(launches, slowdown, spread, outliers), rounds=1)

    benchmark.extra_info.update(rates)
    say(f"{launches} launches, spread {spread:.0%}, outliers {outliers:.0%}, slowdown {slowdown - 1:.0%}", rates)
    assert rates["false_alarms"] <= (0.03 if spread == 0.02 else ALPHA)
    if slowdown == 1.0:
        assert rates["found"] <= rates["false_alarms"] + 0.01
    if (launches, spread, outliers, slowdown) == (6, 0.02, 0.0, 1.1):
        assert rates["found"] >= 0.95


@pytest.mark.parametrize(
    ("spread", "slowdown"),
    [*((0.02, slowdown) for slowdown in (1.0, 1.02, 1.05, 1.1)), *((0.05, slowdown) for slowdown in (1.0, 1.1))],
)
def test_ab_errs_seldom(benchmark, spread, slowdown):
    rates = benchmark.pedantic(ab_rates, args=(slowdown, spread), rounds=1)

    benchmark.extra_info.update(rates)
    say(f"ab, 6 blocks, spread {spread:.0%}, slowdown {slowdown - 1:.0%}", rates)
    assert rates["false_alarms"] <= (0.03 if spread == 0.02 else ALPHA)
