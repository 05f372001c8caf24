"""The gate's promise on a small scale; `pytest benchmarks/test_gates.py` has all of it."""

import pytest

from tests.support.simulation import gate_rates


@pytest.mark.parametrize("slowdown", [1.0, 1.1])
def test_six_launches_find_a_tenth_and_seldom_cry_wolf(slowdown):
    rates = gate_rates(6, slowdown, 0.02)

    assert rates["false_alarms"] <= 0.03
    assert rates["found"] >= 0.95 if slowdown == 1.1 else rates["found"] <= 0.01
