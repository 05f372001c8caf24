"""How often the gate and the A/B rule err, on synthetic launches.

A launch's time is log-normal around its case's; the nine cases of the main job are judged together, as in use.
"""

import math
import random
from functools import lru_cache
from pathlib import Path

from gpt_parallel.bench.ab import MAX_LOOKS, AbBlock, judge
from gpt_parallel.report.compare.gate import decide
from gpt_parallel.report.compare.verdicts import Rules, Verdict
from gpt_parallel.report.saved_run import Case, SavedRun, Stats
from tests.support.factories import stats, summary

CASES = tuple(f"case-{index}" for index in range(9))
SLOWED = CASES[0]


@lru_cache
def template(launches):
    return summary(launches * (100.0,))


def launch_times(generator, count, slowdown, spread, outliers):
    """Relative times; an outlier is a launch that a neighbour made 10 % slower."""
    slow = [1.1 if generator.random() < outliers else 1.0 for _ in range(count)]
    return [slowdown * noise * math.exp(generator.gauss(0, spread)) for noise in slow]


def saved_run(name, times_of_case):
    """A run whose cases' launches take so many times as long as 100 tokens/s do."""
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


def gate_rates(launches, slowdown, spread, outliers=0.0, trials=1000):
    """Shares of trials in which the slowed case FAILs, any other case FAILs, and anything is INCONCLUSIVE."""
    generator = random.Random(20260101)
    found = wrong = unsure = 0
    for _ in range(trials):
        base = simulated(generator, "base", launches, 1.0, spread, outliers)
        head = simulated(generator, "head", launches, slowdown, spread, outliers)
        verdicts = {entry.case: entry.verdict for entry in decide(base, head, Rules()).verdicts}
        found += verdicts[SLOWED] == Verdict.FAIL
        wrong += any(verdicts[case] == Verdict.FAIL for case in CASES[1:])
        unsure += Verdict.INCONCLUSIVE in verdicts.values()
    return {"found": found / trials, "false_alarms": wrong / trials, "inconclusive": unsure / trials}


def ab_rates(slowdown, spread, num_blocks=6, trials=1000):
    """The same for `gpt-parallel ab` with its default rule; `blocks` is the mean number that was measured."""
    generator = random.Random(20260102)
    found = wrong = unsure = measured = 0
    for _ in range(trials):
        blocks = []
        for _look in range(MAX_LOOKS):
            blocks += [
                AbBlock(
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
    return {
        "found": found / trials,
        "false_alarms": wrong / trials,
        "inconclusive": unsure / trials,
        "blocks": measured / trials,
    }
