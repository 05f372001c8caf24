"""Against scipy's own tests and against published examples."""

import math
import random

import pytest
from scipy import stats

from gpt_parallel.report.compare.statistics import holm, launches_needed, paired, welch


def sample(count, median=1.0, spread=0.05, seed=0):
    generator = random.Random(seed)
    return [median * math.exp(generator.gauss(0, spread)) for _ in range(count)]


def test_welch_is_scipys_on_logarithms():
    base, head = sample(5, 1.0), sample(9, 1.1, 0.2, seed=1)
    expected = stats.ttest_ind([*map(math.log, head)], [*map(math.log, base)], equal_var=False, alternative="greater")

    effect = welch(base, head)

    assert effect.p_above() == pytest.approx(expected.pvalue)
    assert effect.degrees == pytest.approx(expected.df)


def test_paired_is_scipys():
    ratios = [math.log(value) for value in sample(7, 1.05)]
    expected = stats.ttest_1samp(ratios, math.log(1.03), alternative="greater")

    assert paired(ratios).p_above(math.log(1.03)) == pytest.approx(expected.pvalue)


def test_interval_is_of_the_ratio_and_covers_it():
    effect = welch(sample(6), sample(6, 2.0, seed=3))
    low, high = effect.interval()

    assert low < effect.ratio < high
    assert high / effect.ratio == pytest.approx(effect.ratio / low), "symmetric on a log scale"
    assert math.exp(effect.upper_bound(0.025)) == pytest.approx(high)


def test_a_single_value_a_side_has_an_effect_and_no_error():
    effect = welch([2.0], [1.0])

    assert effect.ratio == pytest.approx(0.5)
    assert effect.interval() is None
    assert math.isnan(effect.p_above())
    assert effect.upper_bound(0.05) == math.inf


def test_identical_values_leave_no_doubt():
    assert welch([1.0, 1.0], [1.1, 1.1]).p_above() == 0
    assert welch([1.0, 1.0], [1.0, 1.0]).p_above() == 1


def test_holm_is_the_textbooks():
    """Sorted p-values times 4, 3, 2, 1, never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([math.nan, 0.02]) == pytest.approx([1.0, 0.04])
    assert holm([]) == []


def test_launches_needed_grow_with_the_spread():
    needed = [launches_needed(spread, 0.05, 0.05) for spread in (0.01, 0.03, 0.05)]

    assert needed == sorted(needed)
    assert launches_needed(1.0, 0.0001, 0.05) is None
    # What is promised holds: a difference of 0.05 then lies outside the one-sided bound.
    for spread, count in zip((0.01, 0.03, 0.05), needed, strict=True):
        assert stats.t.ppf(0.95, 2 * count - 2) * spread * math.sqrt(2 / count) <= 0.05
