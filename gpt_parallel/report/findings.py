"""The key findings of a run as sentences, each computed from the data."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

from gpt_parallel.report.frame import single_device_cases, speedup_over
from gpt_parallel.report.saved_run import SavedRun
from gpt_parallel.schema.summary import CaseSummary

_UNEVEN = 1.05  # the least imbalance to report


def key_findings(run: SavedRun) -> list[str]:
    """Sentences about one run."""
    measured = [summary for summary in run.summaries if summary.throughput_tok_s and not summary.is_peer]
    findings: list[str] = []
    if measured:
        # Figures of different workloads do not compare; most files have one.
        if len({summary.workload_sha256 for summary in measured}) == 1:
            single = single_device_cases(run).get(measured[0].workload_sha256)
            findings += [_best(measured, single), *_efficiencies(measured, single), *_spreads(measured)]
            findings += _shortest(measured, "time to first token", lambda case: case.ttft_s)
            findings += _shortest(measured, "time per output token", lambda case: case.tpot_s)
            findings += [*_limits(measured), *_time_lost(measured)]
        findings += _over_peers(run, measured)
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
    """Cases by device count, without degenerate ones."""
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


def _over_peers(run: SavedRun, measured: Sequence[CaseSummary]) -> list[str]:
    """One device against another engine on the same one, in throughput and in time per token."""
    found = []
    for peer in (summary for summary in run.summaries if summary.is_peer):
        own = [case for case in measured if case.num_gpus == 1 and case.workload_sha256 == peer.workload_sha256]
        ratio = speedup_over(own[-1], peer) if own else None
        if ratio:
            decode = ""
            if own[-1].tpot_s and peer.tpot_s:
                decode = f", decoding {peer.tpot_s / own[-1].tpot_s:.2f}× as fast"
            found.append(f"One device generates {ratio:.2f}× the tokens/s of {peer.engine}{decode}.")
    return found


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


def _limits(cases: Sequence[CaseSummary]) -> list[str]:
    """The case nearest to the memory limit, and the case with the least energy."""
    found = []
    if reading := [case for case in cases if case.mbu is not None]:
        case = max(reading, key=lambda case: case.mbu or 0.0)
        found.append(f"Nearest to the memory's limit: {_name(case)}, {case.mbu:.0%} of the measured peak.")
    metered = [case for case in cases if case.energy_j_per_token is not None]
    if len(metered) > 1:
        case = min(metered, key=lambda case: case.energy_j_per_token or 0.0)
        found.append(f"Least energy: {_name(case)} with {case.energy_j_per_token:.3g} J per output token.")
    return found


def _time_lost(cases: Sequence[CaseSummary]) -> list[str]:
    """The cases that wait most, communicate most and are most uneven."""
    found = []
    several = [case for case in cases if case.num_gpus > 1 and not case.degenerate]
    for verb, name in (("waits most for peers", "waiting"), ("communicates most", "communication")):
        known = [(share, case) for case in several if (share := getattr(case, f"breakdown_{name}")) is not None]
        if known:
            share, case = max(known, key=lambda pair: pair[0])
            found.append(f"{_name(case)} {verb}: {share:.0%} of its ranks' time.")
    uneven = [case for case in several if (case.imbalance or 1.0) > _UNEVEN]
    if uneven:
        case = max(uneven, key=lambda case: case.imbalance or 1.0)
        found.append(f"Most uneven: {_name(case)}, whose slowest rank takes {case.imbalance:.2f}× the mean.")
    return found


def _marks(cases: Sequence[CaseSummary]) -> list[str]:
    over = [_name(case) for case in cases if case.oversubscribed]
    same = [_name(case) for case in cases if case.degenerate]
    shared = [_name(case) for case in cases if case.shared]
    found = []
    if over:
        found.append(
            f"Oversubscribed (more ranks than devices; right tokens, no measure of scaling): {', '.join(over)}."
        )
    if same:
        found.append(f"Degenerate (the same mesh as an earlier strategy): {', '.join(same)}.")
    for why in dict.fromkeys(case.why_not_repeatable for case in cases):
        if why:
            names = ", ".join(_name(case) for case in cases if case.why_not_repeatable == why)
            found.append(f"Not repeatable ({why}): {names}.")
    if shared:
        found.append(f"Shared (another run used the same devices; slower than alone): {', '.join(shared)}.")
    return found


def _verification(cases: Sequence[CaseSummary]) -> str:
    counts = {status: sum(case.verified == status for case in cases) for status in ("exact", "tie")}
    if counts["exact"] == len(cases):
        return "Every token of every case is the single-device run's."
    parts = [f"{counts['exact']} of {len(cases)} cases are exact"]
    parts += [f"with ties only: {counts['tie']}"] * bool(counts["tie"])
    unverified = len(cases) - sum(counts.values())
    parts += [f"NOT verified: {unverified}"] * bool(unverified)
    return "; ".join(parts) + "."


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no reason given"
