"""Decides, case by case, whether a run is slower than another, and fails closed.

A case FAILs when it is worse by more than the threshold and the difference is significant over its launches; it PASSes
when a worsening beyond the threshold can be ruled out; anything in between is INCONCLUSIVE. What cannot be compared is
an error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from statistics import stdev

from gpt_parallel.report.load import Case, SavedRun
from gpt_parallel.report.statistics import Effect, holm, launches_needed, welch
from gpt_parallel.result import CaseSummary, LaunchFigures

ALPHA = 0.05
MIN_LAUNCHES = 3


class Verdict(str, Enum):
    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    ERROR = "ERROR"


EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.ERROR: 2, Verdict.INCONCLUSIVE: 3}

# What a launch contributes to each metric, so that more is worse.
_COSTS: dict[str, Callable[[LaunchFigures], float | None]] = {
    "throughput": lambda launch: 1 / launch.throughput_tok_s if launch.throughput_tok_s else None,
    "ttft": lambda launch: launch.ttft_s,
    "tpot": lambda launch: launch.tpot_s,
    "memory": lambda launch: launch.peak_memory_bytes,
}
METRICS = tuple(_COSTS)
# Both sides must agree on these for their figures to be compared at all.
_SAME = {
    "workload": "workload_sha256",
    "mesh": "mesh",
    "device": "device_name",
    "processor": "cpu",
    "number of cores": "num_cores",
    "cores per rank": "cores_per_rank",
    "back end": "backend",
}


@dataclass(frozen=True)
class Rules:
    """`thresholds` are (case pattern, worst tolerated change as a fraction); the first match counts."""

    metric: str = "throughput"
    threshold: float = 0.05
    thresholds: tuple[tuple[str, float], ...] = ()
    allow_new: bool = False
    allow_removed: bool = False
    allow_single_launch: bool = False

    def threshold_of(self, case: str) -> float:
        for pattern, value in self.thresholds:
            if fnmatchcase(case, pattern) or pattern in case:
                return value
        return self.threshold


@dataclass(frozen=True)
class CaseVerdict:
    """`change` is relative, worse is positive: time, memory, or the inverse of throughput."""

    case: str
    verdict: Verdict
    reason: str
    change: float | None = None
    p_value: float | None = None
    launches: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class GateResult:
    rules: Rules
    verdicts: list[CaseVerdict] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst: an error hides everything, a failure hides doubt."""
        found = {entry.verdict for entry in self.verdicts}
        for verdict in (Verdict.ERROR, Verdict.FAIL, Verdict.INCONCLUSIVE):
            if verdict in found:
                return verdict
        return Verdict.PASS if found else Verdict.ERROR

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]


def decide(base: SavedRun, head: SavedRun, rules: Rules) -> GateResult:
    """Compare every case of two runs under the rules."""
    before = {case.fullname: case for case in base.cases}
    after = {case.fullname: case for case in head.cases}
    result = GateResult(rules)
    if not before or not after:
        empty = base if not before else head
        result.verdicts.append(CaseVerdict("all cases", Verdict.ERROR, f"{empty.path} holds no benchmarks"))
        return result
    measured: list[tuple[Case, Effect, float, tuple[int, int]]] = []
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            result.verdicts.append(_removed(before[name], head, rules))
        elif name not in before:
            result.verdicts.append(_new(after[name], base, rules))
        else:
            _compare(before[name], after[name], rules, measured, result.verdicts)
    adjusted = holm([effect.p_above() for _, effect, _, _ in measured])
    for (case, effect, deviation, counts), p_value in zip(measured, adjusted, strict=True):
        result.verdicts.append(_judge(case, effect, p_value, deviation, counts, rules))
    return result


def _removed(case: Case, head: SavedRun, rules: Rules) -> CaseVerdict:
    if rules.allow_removed:
        return CaseVerdict(case.name, Verdict.PASS, "removed, which --allow-removed accepts")
    renamed = [other.name for other in head.cases if case.identity is not None and other.identity == case.identity]
    why = f"renamed to {renamed[0]}" if renamed else "missing from the head run"
    for entry in head.not_run:
        if entry.case in case.fullname:
            why = f"{entry.outcome} in the head run: {entry.reason}"
    return CaseVerdict(case.name, Verdict.ERROR, f"{why} (--allow-removed accepts missing cases)")


def _new(case: Case, base: SavedRun, rules: Rules) -> CaseVerdict:
    if rules.allow_new:
        return CaseVerdict(case.name, Verdict.PASS, "new, which --allow-new accepts")
    return CaseVerdict(
        case.name, Verdict.ERROR, f"not in {base.path}: nothing to compare with (--allow-new accepts it)"
    )


def _compare(
    before: Case,
    after: Case,
    rules: Rules,
    measured: list[tuple[Case, Effect, float, tuple[int, int]]],
    verdicts: list[CaseVerdict],
) -> None:
    """Put a comparable case among the measured ones, any other among the verdicts."""
    problem = why_not_comparable(before.summary, after.summary)
    if problem is None:
        assert before.summary is not None
        assert after.summary is not None
        sides = [_costs(before.summary, rules.metric), _costs(after.summary, rules.metric)]
        if sides[0] and sides[1]:
            effect = welch(sides[0], sides[1])
            measured.append((after, effect, _spread(sides), (len(sides[0]), len(sides[1]))))
            return
        problem = f"a launch has no valid {rules.metric}"
    verdicts.append(CaseVerdict(after.name, Verdict.ERROR, problem))


def why_not_comparable(before: CaseSummary | None, after: CaseSummary | None) -> str | None:
    """Why no ratio of the two may be formed, or None: unverified, or other work, or another machine."""
    if before is None or after is None:
        return "not a generation case: nothing proves that it did the same work (gate gpt_parallel cases only)"
    for side, summary in (("base", before), ("head", after)):
        if summary.verified not in ("exact", "tie"):
            return f"the {side} run was not verified ({summary.verified})"
    for what, name in _SAME.items():
        if getattr(before, name) != getattr(after, name):
            shown = "" if name.endswith("sha256") else f": {getattr(before, name)} and {getattr(after, name)}"
            return f"base and head differ in {what}{shown}"
    return None


def _costs(summary: CaseSummary, metric: str) -> list[float]:
    """One value a launch; empty if any launch lacks a positive finite one."""
    costs = [_COSTS[metric](launch) for launch in summary.launches]
    valid = [cost for cost in costs if cost is not None and math.isfinite(cost) and cost > 0]
    return valid if len(valid) == len(costs) else []


def _spread(sides: Sequence[Sequence[float]]) -> float:
    """The larger standard deviation of log costs over launches."""
    return max((stdev(map(math.log, side)) for side in sides if len(side) > 1), default=0.0)


def _judge(
    case: Case, effect: Effect, p_value: float, deviation: float, counts: tuple[int, int], rules: Rules
) -> CaseVerdict:
    threshold = rules.threshold_of(case.name)
    change = effect.ratio - 1
    limit = math.log1p(threshold)

    def verdict(kind: Verdict, reason: str) -> CaseVerdict:
        return CaseVerdict(case.name, kind, reason, change, p_value, counts)

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
    needed = launches_needed(deviation, limit - effect.log_ratio, ALPHA)
    more = f"about {max(needed, min(counts) + 1)} launches a side" if needed else "more launches than is reasonable"
    return verdict(Verdict.INCONCLUSIVE, f"spread {deviation:.1%} between launches: {more} would tell")
