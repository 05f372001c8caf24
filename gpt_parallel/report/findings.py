"""What a reader should take away, in words: each computed from the data, or not there at all."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from gpt_parallel.report.load import SavedRun
from gpt_parallel.report.metrics import single_device_cases, speedup_over
from gpt_parallel.result import CaseSummary


def key_findings(run: SavedRun) -> list[str]:
    """Sentences about one run."""
    measured = [summary for summary in run.summaries if summary.throughput_tok_s]
    findings: list[str] = []
    if measured:
        # Figures of different workloads do not compare; most files have one.
        if len({summary.workload_sha256 for summary in measured}) == 1:
            single = single_device_cases(run).get(measured[0].workload_sha256)
            findings += [_best(measured, single), *_efficiencies(measured, single), *_spreads(measured)]
            findings += _shortest(measured, "time to first token", lambda case: case.ttft_s)
            findings += _shortest(measured, "time per output token", lambda case: case.tpot_s)
        findings += _marks(measured)
        findings.append(_verification(measured))
    findings += [f"{entry.outcome.capitalize()}: {entry.case} ({_first_line(entry.reason)})." for entry in run.not_run]
    return findings


def _name(case: CaseSummary) -> str:
    return f"{case.strategy} on {_devices(case.num_gpus)}"


def _devices(count: int) -> str:
    return f"{count} device" + ("s" if count != 1 else "")


def _throughput(case: CaseSummary) -> float:
    return case.throughput_tok_s or 0.0


def _by_devices(cases: Sequence[CaseSummary]) -> dict[int, list[CaseSummary]]:
    """Cases by device count, without those that merely repeat another's mesh."""
    grouped = defaultdict(list)
    for case in cases:
        if not case.degenerate:
            grouped[case.num_gpus].append(case)
    return dict(sorted(grouped.items()))


def _best(cases: Sequence[CaseSummary], single: CaseSummary | None) -> str:
    own_device = [case for case in cases if not case.oversubscribed]
    best = max(own_device or cases, key=_throughput)
    among = " among the cases with a device per rank" if own_device and len(own_device) < len(cases) else ""
    speedup = speedup_over(best, single)
    over = f", {speedup:.2f}× one device" if speedup and best.num_gpus > 1 else ""
    return f"Highest throughput{among}: {_name(best)} with {_throughput(best):,.1f} tokens/s{over}."


def _efficiencies(cases: Sequence[CaseSummary], single: CaseSummary | None) -> list[str]:
    found = []
    for count, group in _by_devices(cases).items():
        speedups = [speedup for case in group if (speedup := speedup_over(case, single))]
        if count > 1 and speedups:
            over = " (oversubscribed: not a measure of scaling)" if all(c.oversubscribed for c in group) else ""
            found.append(f"Mean parallel efficiency on {_devices(count)}: {fmean(speedups) / count:.0%}{over}.")
    return found


def _spreads(cases: Sequence[CaseSummary]) -> list[str]:
    found = []
    for count, group in _by_devices(cases).items():
        if len(group) > 1:
            fast, slow = max(group, key=_throughput), min(group, key=_throughput)
            ratio = _throughput(fast) / _throughput(slow)
            found.append(f"On {_devices(count)} {fast.strategy} is {ratio:.2f}× as fast as {slow.strategy}.")
    return found


def _shortest(cases: Sequence[CaseSummary], title: str, value: Callable[[CaseSummary], float | None]) -> list[str]:
    known = [(seconds, case) for case in cases if not case.degenerate and (seconds := value(case)) is not None]
    if len(known) < 2:
        return []
    seconds, case = min(known, key=lambda pair: pair[0])
    return [f"Shortest {title}: {_name(case)} with {seconds * 1000:.4g} ms (median)."]


def _marks(cases: Sequence[CaseSummary]) -> list[str]:
    over = [_name(case) for case in cases if case.oversubscribed]
    same = [_name(case) for case in cases if case.degenerate]
    found = []
    if over:
        found.append(
            f"Oversubscribed (more ranks than devices; right tokens, no measure of scaling): {', '.join(over)}."
        )
    if same:
        found.append(f"Degenerate (the same mesh as an earlier strategy): {', '.join(same)}.")
    return found


def _verification(cases: Sequence[CaseSummary]) -> str:
    counts = {status: sum(case.verified == status for case in cases) for status in ("exact", "tie", "skipped")}
    if counts["exact"] == len(cases):
        return "Every token of every case is the single-device run's."
    parts = [f"{counts['exact']} of {len(cases)} cases are exact"]
    parts += [f"with ties only: {counts['tie']}"] * bool(counts["tie"])
    parts += [f"NOT verified: {counts['skipped']}"] * bool(counts["skipped"])
    return "; ".join(parts) + "."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
