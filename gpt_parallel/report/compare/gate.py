"""Decides for each case whether a run is slower than another. Anything unclear fails.

A case FAILs when it is worse by more than the threshold and the difference is significant over its launches; it PASSes
when a worsening beyond the threshold can be ruled out; anything in between is INCONCLUSIVE. What cannot be compared is
an error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import stdev

from gpt_parallel.report.compare.comparable import differences, reason_not_comparable, reason_unverified
from gpt_parallel.report.compare.statistics import Effect, holm, launches_needed, welch
from gpt_parallel.report.compare.verdicts import GateResult, GateVerdict, Rules, Verdict, matches
from gpt_parallel.report.saved_run import Case, ReportError, SavedRun
from gpt_parallel.schema.summary import CaseSummary, LaunchFigures

ALPHA = 0.05
MIN_LAUNCHES = 3


# The cost of a launch for each metric; larger is worse.
_COSTS: dict[str, Callable[[LaunchFigures], float | None]] = {
    "throughput": lambda launch: 1 / launch.throughput_tok_s if launch.throughput_tok_s else None,
    "ttft": lambda launch: launch.ttft_s,
    "tpot": lambda launch: launch.tpot_s,
    "memory": lambda launch: launch.peak_memory_bytes,
}
METRICS = tuple(_COSTS)
_LEAST_COST = 1e-15  # below it there is no measurement, and ratios overflow


@dataclass(frozen=True)
class _Measured:
    """A comparable case; `deviation` is the standard deviation of log costs over launches, of the noisier side."""

    case: Case
    effect: Effect
    deviation: float
    launches: tuple[int, int]


def decide(base: SavedRun, head: SavedRun, rules: Rules) -> GateResult:
    """Compare every case of two runs under the rules. Raises ReportError for a case pattern that matches nothing."""
    result = GateResult(rules)
    for name, reason in head.failed.items():
        result.add_error(name, f"failed in the head run: {reason}")
    if head.incompleteness and not head.failed:
        result.add_error("all cases", f"{head.path} is of a run that ended early. {head.incompleteness}")
    empty = [run for run in (base, head) if not run.cases]
    if empty:
        result.add_error("all cases", f"{empty[0].path} holds no benchmarks")
        return result
    _check_patterns(rules, [case.name for case in (*base.cases, *head.cases)])
    measured = _compare_all(base, head, result)
    for entry, p_value in zip(measured, holm([entry.effect.p_above() for entry in measured]), strict=True):
        result.verdicts.append(_judge(entry, p_value, len(measured), rules))
    if not measured and result.verdict == Verdict.PASS:
        result.add_error("all cases", "nothing was compared: base and head have no case in common")
    return result


def _check_patterns(rules: Rules, names: Sequence[str]) -> None:
    for pattern, _ in rules.thresholds:
        if not any(matches(pattern, name) for name in names):
            raise ReportError(f"--case {pattern!r} matches no case")


def _compare_all(base: SavedRun, head: SavedRun, result: GateResult) -> list[_Measured]:
    """The comparable cases; the others get their verdicts at once."""
    before = {case.fullname: case for case in base.cases}
    after = {case.fullname: case for case in head.cases}
    measured = []
    for name, case in before.items():
        if name in after:
            found = _compare(case, after[name], result)
            measured += [found] if found else []
        elif case.name not in head.failed:
            result.verdicts.append(_removed(case, head, result.rules))
    result.verdicts.extend(_new(case, base, result.rules) for name, case in after.items() if name not in before)
    return measured


def _removed(case: Case, head: SavedRun, rules: Rules) -> GateVerdict:
    if rules.allow_removed:
        return GateVerdict(case.name, Verdict.PASS, "removed, which --allow-removed accepts")
    renamed = [other.name for other in head.cases if case.identity is not None and other.identity == case.identity]
    why = f"renamed to {renamed[0]}" if renamed else "missing from the head run"
    for entry in head.not_run:
        if entry.case == case.name:
            why = f"{entry.outcome} in the head run: {entry.reason}"
    return GateVerdict(case.name, Verdict.ERROR, f"{why} (--allow-removed accepts missing cases)")


def _new(case: Case, base: SavedRun, rules: Rules) -> GateVerdict:
    problem = reason_unverified(case.summary, "head")
    if problem is None and case.summary is not None and not _costs(case.summary, rules.metric):
        problem = f"a launch has no valid {rules.metric}"
    if problem is None and case.name in base.failed:
        problem = f"failed in the base run: {base.failed[case.name]}"
    if problem is None and not rules.allow_new:
        problem = f"not in {base.path}: nothing to compare with (--allow-new accepts it)"
    if problem is not None:
        return GateVerdict(case.name, Verdict.ERROR, problem)
    return GateVerdict(case.name, Verdict.PASS, "new, which --allow-new accepts")


def _compare(before: Case, after: Case, result: GateResult) -> _Measured | None:
    """The measured case, or None with a verdict added to the result's if it is not comparable."""
    rules = result.rules
    problem = reason_not_comparable(before.summary, after.summary, rules.allow_other_host)
    if problem is None:
        assert before.summary is not None
        assert after.summary is not None
        sides = [_costs(before.summary, rules.metric), _costs(after.summary, rules.metric)]
        if sides[0] and sides[1]:
            result.add_notes(differences(before.summary, after.summary))
            return _Measured(after, welch(sides[0], sides[1]), _spread(sides), (len(sides[0]), len(sides[1])))
        problem = f"a launch has no valid {rules.metric}"
    result.add_error(after.name, problem)
    return None


def _costs(summary: CaseSummary, metric: str) -> list[float]:
    """One value per launch; empty if any launch lacks a valid one."""
    costs = [_COSTS[metric](launch) for launch in summary.launches]
    valid = [cost for cost in costs if cost is not None and math.isfinite(cost) and cost >= _LEAST_COST]
    return valid if len(valid) == len(costs) else []


def _spread(sides: Sequence[Sequence[float]]) -> float:
    """The larger standard deviation of log costs over launches."""
    return max((stdev(map(math.log, side)) for side in sides if len(side) > 1), default=0.0)


def _judge(measured: _Measured, p_value: float, num_measured: int, rules: Rules) -> GateVerdict:
    name, effect, counts = measured.case.name, measured.effect, measured.launches
    threshold = rules.threshold_of(name)
    limit = math.log1p(threshold)

    def verdict(kind: Verdict, reason: str) -> GateVerdict:
        return GateVerdict(name, kind, reason, effect.ratio - 1, p_value, counts)

    if min(counts) < MIN_LAUNCHES:
        if not rules.allow_single_launch:
            return verdict(
                Verdict.INCONCLUSIVE,
                f"{min(counts)} launch(es) a side; at least {MIN_LAUNCHES} are needed (--gpt-launches)",
            )
        kind = Verdict.FAIL if effect.log_ratio > limit else Verdict.PASS
        return verdict(kind, "judged on too few launches, as --allow-single-launch asks")
    if effect.log_ratio > limit and p_value <= ALPHA:
        return verdict(Verdict.FAIL, f"worse by more than {threshold:.1%}, p = {p_value:.2g}")
    if effect.upper_bound(ALPHA) <= limit:
        return verdict(Verdict.PASS, f"a worsening beyond {threshold:.1%} is ruled out")
    needed = launches_needed(measured.deviation, *detectable_effect(effect, limit, ALPHA, num_measured))
    more = f"about {max(needed, min(counts) + 1)} launches a side" if needed else "more launches than is reasonable"
    return verdict(Verdict.INCONCLUSIVE, f"spread {measured.deviation:.1%} between launches: {more} would tell")


def detectable_effect(effect: Effect, limit: float, alpha: float, num_cases: int) -> tuple[float, float]:
    """The log-difference that would decide an open case if it persists, and its test level.

    Beyond the limit that is the difference from no change at all, after Holm's correction at its strictest; below, the
    distance to the limit.
    """
    if effect.log_ratio > limit:
        return effect.log_ratio, alpha / num_cases
    return limit - effect.log_ratio, alpha
