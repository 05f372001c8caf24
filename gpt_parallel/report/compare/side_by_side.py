"""Several runs side by side: ratios to a baseline where runs are comparable, and the reason where they are not."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import geometric_mean

from gpt_parallel.report.compare.comparable import differences, reason_not_comparable
from gpt_parallel.report.compare.statistics import welch
from gpt_parallel.report.saved_run import Case, ReportError, SavedRun


@dataclass(frozen=True)
class Row:
    """A case in one run: its value, and the ratio to the baseline's.

    `value` is a throughput in tokens/s, the geometric mean over `launches`, or a plain benchmark's median seconds. The
    interval is the 95 % one, None where a side has one launch or none are known.
    """

    case: str
    run: SavedRun
    value: float | None
    is_throughput: bool
    launches: int
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Comparison:
    """`rows` case by case, the runs of a case in the given order."""

    baseline: str
    rows: list[Row] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)


def compare(runs: Sequence[SavedRun], baseline: str | None, allow_other_host: bool = False) -> Comparison | None:
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
    tables = [{case.fullname: case for case in run.cases} for run in runs]
    before = tables[runs.index(base)]
    for name in dict.fromkeys(name for table in (before, *tables) for name in table):
        for run, table in zip(runs, tables, strict=True):
            if name in table:
                old = None if run is base else before.get(name)
                comparison.rows.append(_row(run, table[name], base, old, allow_other_host))
    for run, table in zip(runs, tables, strict=True):
        if run is not base:
            comparison.changes.extend(f"{run.label}: {change}" for change in _changes(before, table))
    return comparison


def _row(run: SavedRun, case: Case, base: SavedRun, old: Case | None, allow_other_host: bool) -> Row:
    row = _measured(run, case)
    if old is None:
        return row
    problem = _why_no_ratio(base, old, run, case, allow_other_host)
    if problem is not None:
        return replace(row, problem=problem)
    sides = [_values(old), _values(case)]
    effect = welch(*sides)
    return replace(row, ratio=effect.ratio, interval=effect.interval())


def _measured(run: SavedRun, case: Case) -> Row:
    values = _values(case)
    value = geometric_mean(values) if values else None
    return Row(case.name, run, value, case.summary is not None, len(case.summary.launches) if case.summary else 0)


def _values(case: Case) -> list[float]:
    """One throughput per launch, or a plain benchmark's median time if it is not zero."""
    if case.summary is None:
        return [case.stats.median] if case.stats.median else []
    return [launch.throughput_tok_s for launch in case.summary.launches if launch.throughput_tok_s]


def _why_no_ratio(base: SavedRun, old: Case, head: SavedRun, new: Case, allow_other_host: bool) -> str | None:
    if old.summary is not None or new.summary is not None:
        problem = reason_not_comparable(old.summary, new.summary, allow_other_host)
    elif base.machine != head.machine:
        problem = f"base and head differ in machine: {base.machine} and {head.machine}"
    elif base.host != head.host and not allow_other_host:
        problem = f"base and head differ in host: {base.host} and {head.host} (--allow-other-host accepts it)"
    else:
        problem = None
    return problem or (None if _values(old) and _values(new) else "not timed")


def _changes(before: dict[str, Case], after: dict[str, Case]) -> Iterator[str]:
    """Notes beside the table: cases that only one run has, and other differences."""
    removed = [case for name, case in before.items() if name not in after]
    new = [case for name, case in after.items() if name not in before]
    for case in list(new):
        old = next((other for other in removed if case.identity is not None and other.identity == case.identity), None)
        if old is not None:
            yield f"{old.name} was renamed to {case.name}"
            removed.remove(old)
            new.remove(case)
    yield from (f"{case.name} is new" for case in new)
    yield from (f"{case.name} is missing" for case in removed)
    both = [(before[name].summary, case.summary) for name, case in after.items() if name in before]
    yield from dict.fromkeys(note for old_row, new_row in both for note in differences(old_row, new_row))
