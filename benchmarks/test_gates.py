"""How often the gate and the A/B rule err, on synthetic launches: run `pytest benchmarks/test_gates.py -s`.

The figures stand in docs/gates.md. A launch's time is log-normal around its case's; the nine cases of the main job are
judged together, as in use.
"""

import math
import random
from functools import lru_cache
from pathlib import Path

import pytest

from gpt_parallel.ab import MAX_LOOKS, Block, judge
from gpt_parallel.report.gate import ALPHA, Rules, Verdict, decide
from gpt_parallel.report.load import Case, SavedRun, Stats
from tests.factories import stats, summary

CASES = tuple(f"case-{index}" for index in range(9))
SLOWED = CASES[0]
TRIALS = 1000


@lru_cache
def template(launches):
    return summary(launches * (100.0,))


def launch_times(generator, count, slowdown, spread, outliers):
    """Relative times; an outlier is a launch that a neighbour made 10 % slower."""
    slow = [1.1 if generator.random() < outliers else 1.0 for _ in range(count)]
    return [slowdown * noise * math.exp(generator.gauss(0, spread)) for noise in slow]


def saved_run(name, times_of_case):
    cases = []
    for case, times in times_of_case.items():
        row = template(len(times))
        launches = tuple(
            launch.model_copy(update={"throughput_tok_s": 100 / time})
            for launch, time in zip(row.launches, times, strict=True)
        )
        cases.append(Case(case, case, None, Stats(**stats(times)), row.model_copy(update={"launches": launches})))
    return SavedRun(Path(name), name, "", "", False, "", "", tuple(cases))


def simulated(generator, name, count, slowdown, spread, outliers):
    """A run with one case slowed down."""
    factor = {SLOWED: slowdown}
    return saved_run(
        name, {case: launch_times(generator, count, factor.get(case, 1.0), spread, outliers) for case in CASES}
    )


def gate_rates(launches, slowdown, spread, outliers=0.0):
    """Shares of trials in which the slowed case FAILs, any other case FAILs, and anything is INCONCLUSIVE."""
    generator = random.Random(20260101)
    found = wrong = unsure = 0
    for _ in range(TRIALS):
        base = simulated(generator, "base", launches, 1.0, spread, outliers)
        head = simulated(generator, "head", launches, slowdown, spread, outliers)
        verdicts = {entry.case: entry.verdict for entry in decide(base, head, Rules()).verdicts}
        found += verdicts[SLOWED] == Verdict.FAIL
        wrong += any(verdicts[case] == Verdict.FAIL for case in CASES[1:])
        unsure += Verdict.INCONCLUSIVE in verdicts.values()
    return {"found": found / TRIALS, "false_alarms": wrong / TRIALS, "inconclusive": unsure / TRIALS}


def ab_rates(slowdown, spread, num_blocks=6):
    """The same for `gpt-parallel ab` with its default rule; `blocks` is the mean number that was measured."""
    generator = random.Random(20260102)
    found = wrong = unsure = measured = 0
    for _ in range(TRIALS // 4):
        blocks = []
        for _look in range(MAX_LOOKS):
            blocks += [
                Block(
                    simulated(generator, "base", 1, 1.0, spread, 0.0),
                    simulated(generator, "head", 1, slowdown, spread, 0.0),
                )
                for _ in range(num_blocks)
            ]
            result = judge(blocks, Rules(threshold=0.03))
            if result.verdict != Verdict.INCONCLUSIVE:
                break
        verdicts = {entry.case: entry.verdict for entry in result.verdicts}
        found += verdicts[SLOWED] == Verdict.FAIL
        wrong += any(verdicts[case] == Verdict.FAIL for case in CASES[1:])
        unsure += Verdict.INCONCLUSIVE in verdicts.values()
        measured += len(blocks)
    trials = TRIALS // 4
    return {
        "found": found / trials,
        "false_alarms": wrong / trials,
        "inconclusive": unsure / trials,
        "blocks": measured / trials,
    }


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


@pytest.mark.parametrize("slowdown", [1.0, 1.02, 1.05, 1.1])
def test_ab_errs_seldom(benchmark, slowdown):
    rates = benchmark.pedantic(ab_rates, args=(slowdown, 0.02), rounds=1)

    benchmark.extra_info.update(rates)
    say(f"ab, 6 blocks, spread 2%, slowdown {slowdown - 1:.0%}", rates)
    assert rates["false_alarms"] <= 0.03
