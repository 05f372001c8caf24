"""Several runs side by side: ratios to a baseline where they mean something, and plain words where they do not."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt_parallel.report.gate import why_not_comparable
from gpt_parallel.report.load import Case, ReportError, SavedRun
from gpt_parallel.report.statistics import welch


@dataclass(frozen=True)
class Ratio:
    """A case's throughput over the baseline's, with its 95 % interval where both have several launches."""

    run: str
    case: str
    base: float | None = None
    value: float | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    baseline: str
    ratios: list[Ratio] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def compare(runs: Sequence[SavedRun], baseline: str | None) -> Comparison | None:
    """All runs against the one labelled `baseline` (the first by default); None if there is only one.

    Raises ReportError if there is no such label.
    """
    by_label = {run.label: run for run in runs}
    if baseline is not None and baseline not in by_label:
        raise ReportError(f"--baseline {baseline!r}: no such run; allowed: {', '.join(by_label)}")
    if len(runs) == 1:
        return None
    base = by_label[baseline] if baseline else runs[0]
    comparison = Comparison(base.label)
    for head in runs:
        if head is not base:
            _compare_run(base, head, comparison)
    return comparison


def _compare_run(base: SavedRun, head: SavedRun, comparison: Comparison) -> None:
    before = {case.fullname: case for case in base.cases}
    after = {case.fullname: case for case in head.cases}
    comparison.ratios.extend(_ratio(before[name], case, head.label) for name, case in after.items() if name in before)
    removed = [case for name, case in before.items() if name not in after]
    new = [case for name, case in after.items() if name not in before]
    for case in list(new):
        old = next((other for other in removed if case.identity is not None and other.identity == case.identity), None)
        if old is not None:
            comparison.changes.append(f"{head.label}: {old.name} was renamed to {case.name}")
            removed.remove(old)
            new.remove(case)
    comparison.changes.extend(f"{head.label}: {case.name} is new" for case in new)
    comparison.changes.extend(f"{head.label}: {case.name} is missing" for case in removed)


def _ratio(before: Case, after: Case, label: str) -> Ratio:
    if before.summary is None and after.summary is None:
        # Plain benchmarks: what they time is their author's business.
        return Ratio(
            label, after.name, 1 / before.stats.median, 1 / after.stats.median, before.stats.median / after.stats.median
        )
    problem = why_not_comparable(before.summary, after.summary)
    if problem is not None:
        return Ratio(label, after.name, problem=problem)
    assert before.summary is not None
    assert after.summary is not None
    sides = [
        [launch.throughput_tok_s for launch in summary.launches if launch.throughput_tok_s]
        for summary in (before.summary, after.summary)
    ]
    if not sides[0] or not sides[1]:
        return Ratio(label, after.name, problem="not timed")
    effect = welch(sides[0], sides[1])
    return Ratio(
        label,
        after.name,
        before.summary.throughput_tok_s,
        after.summary.throughput_tok_s,
        effect.ratio,
        effect.interval(),
    )
