"""The statistical tests of comparisons and gates. They work on logarithms, since effects are ratios."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats would take half a second to import

MOST_NEEDED = 999  # more launches are not practical


@dataclass(frozen=True)
class Effect:
    """A log-ratio head ÷ base with its standard error and degrees of freedom (None where there is one value a side)."""

    log_ratio: float
    standard_error: float | None
    degrees: float

    @property
    def ratio(self) -> float:
        return math.exp(self.log_ratio)

    def p_above(self, log_threshold: float = 0.0) -> float:
        """One-sided p-value of "the log-ratio is not above `log_threshold`"."""
        if self.standard_error is None:
            return math.nan
        if self.standard_error == 0:
            return 0.0 if self.log_ratio > log_threshold else 1.0
        return float(stdtr(self.degrees, (log_threshold - self.log_ratio) / self.standard_error))

    def upper_bound(self, alpha: float) -> float:
        """The log-ratio that the true one exceeds with probability `alpha` at most."""
        if self.standard_error is None:
            return math.inf
        return self.log_ratio + self.standard_error * float(stdtrit(self.degrees, 1 - alpha))

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """The ratio's two-sided confidence interval; None with one value a side."""
        if self.standard_error is None:
            return None
        reach = self.standard_error * float(stdtrit(self.degrees, (1 + confidence) / 2))
        return math.exp(self.log_ratio - reach), math.exp(self.log_ratio + reach)


def welch(base: Sequence[float], head: Sequence[float]) -> Effect:
    """Independent samples of positive values, variances unequal (Welch 1947; degrees: Satterthwaite 1946)."""
    logs = [[math.log(value) for value in values] for values in (base, head)]
    log_ratio = fmean(logs[1]) - fmean(logs[0])
    if min(map(len, logs)) < 2:
        return Effect(log_ratio, None, 0.0)
    shares = [variance(values) / len(values) for values in logs]
    total = sum(shares)
    if total == 0:
        return Effect(log_ratio, 0.0, 1.0)
    degrees = total**2 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, logs, strict=True))
    return Effect(log_ratio, math.sqrt(total), degrees)


def paired(log_ratios: Sequence[float]) -> Effect:
    """Pairs measured side by side: a one-sample t over their log-ratios."""
    if len(log_ratios) < 2:
        return Effect(fmean(log_ratios), None, 0.0)
    error = math.sqrt(variance(log_ratios) / len(log_ratios))
    return Effect(fmean(log_ratios), error, len(log_ratios) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that hold for all cases together (Holm 1979); NaN counts as 1."""
    known = [1.0 if math.isnan(p) else p for p in p_values]
    adjusted = [1.0] * len(known)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        running = max(running, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = running
    return adjusted


def launches_needed(deviation: float, distance: float, alpha: float) -> int | None:
    """Launches per side with which Welch's one-sided test detects `distance` at this spread.

    `deviation` and `distance` are in logs. None if more than `MOST_NEEDED`.
    """
    return _fewest(
        lambda count: _reach(alpha, 2 * count - 2) * deviation * math.sqrt(2 / count) <= distance,
    )


def pairs_needed(deviation: float, distance: float, alpha: float) -> int | None:
    """The same for pairs, whose log-ratios deviate by `deviation`."""
    return _fewest(lambda count: _reach(alpha, count - 1) * deviation / math.sqrt(count) <= distance)


def _reach(alpha: float, degrees: int) -> float:
    return float(stdtrit(degrees, 1 - alpha))


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    """The smallest sufficient count; larger counts suffice too."""
    counts = range(2, MOST_NEEDED + 1)
    place = bisect_left(counts, True, key=is_enough)
    return counts[place] if place < len(counts) else None
