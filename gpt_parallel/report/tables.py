"""The tables of a terminal: results, and where the time of a pass went."""

import io
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gpt_parallel.base.escaping import plain
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.summary import CaseSummary
from gpt_parallel.schema.telemetry import BREAKDOWN_PARTS

_OVERSUBSCRIBED, _DEGENERATE, _SHARED = "*", "†", "§"
NOT_REPEATABLE = "‡"
_PROVED = {"engine": "not proved independently (judge: engine)"}
# Headings of columns that hold text.
_WORDS = ("case", "run", "commit", "branch", "machine", "strategy", "mesh", "verified")
_WIDE = 1000  # an upper limit; a table takes only the width it needs


MEANING = (
    "Where the time goes in one extra pass: waiting is for peers (the pipeline's bubble), host is what is left, such "
    "as Python between the parts."
)


def render_table(cases: Sequence[CaseSummary]) -> str:
    """One row per case with speed-up and efficiency over the one-device case, and what the figures hold for."""
    single = {case.workload_sha256: case.throughput_tok_s for case in reversed(cases) if _is_single(case)}
    headings = ["strategy", "devices", "mesh", "tokens/s", "speed-up", "efficiency", "TTFT", "TPOT", "verified"]
    rows = [_row(case, single.get(case.workload_sha256)) for case in cases]
    if len({case.batch_size for case in cases}) > 1:
        for cells, value in zip((headings, *rows), ("batch", *(str(case.batch_size) for case in cases)), strict=True):
            cells.insert(2, value)
    return "\n".join(["", text_table(headings, rows), "", *captions(cases)])


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], is_narrow: bool = False) -> str:
    """A text table with words on the left and numbers on the right; nothing is truncated."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=not is_narrow, padding=(0, 1, 0, 0 if is_narrow else 1))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in _WORDS else "right", no_wrap=True, vertical="bottom")
    for row in rows:
        table.add_row(*map(plain, row))
    output = io.StringIO()
    Console(file=output, width=_WIDE, color_system=None, markup=False, emoji=False).print(table)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


def marks(oversubscribed: bool, degenerate: bool, shared: bool) -> str:
    """The marks behind a number of devices; `captions` explains them."""
    return _OVERSUBSCRIBED * oversubscribed + _DEGENERATE * degenerate + _SHARED * shared


def _row(case: CaseSummary, single: float | None) -> list[str]:
    speedup = case.throughput_tok_s / single if case.throughput_tok_s and single and not case.is_peer else None
    return [
        case.strategy,
        _devices(case),
        case.mesh,
        _number(case.throughput_tok_s, ",.1f"),
        _number(speedup, ".2f", "×"),
        _number(speedup / case.num_gpus * 100 if speedup else None, ".0f", " %"),
        milliseconds(case.ttft_s),
        milliseconds(case.tpot_s),
        case.verified + NOT_REPEATABLE * (case.repeatable is False),
    ]


def _devices(case: CaseSummary) -> str:
    return f"{case.num_gpus}{marks(case.oversubscribed, case.degenerate, case.shared)}"


def milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{four_digits(seconds * 1000)} ms"


def four_digits(value: float) -> str:
    """Four significant digits, or all digits before the point, without an exponent for large numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"


def single_device_throughput(cases: Sequence[CaseSummary]) -> float | None:
    """Tokens per second of the one-device case, the reference of the speed-up."""
    return next((case.throughput_tok_s for case in cases if _is_single(case)), None)


def _is_single(case: CaseSummary) -> bool:
    return case.num_gpus == 1 and not case.is_peer


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def captions(cases: Sequence[CaseSummary]) -> list[str]:
    """Sentences about model, workload, machine and the marks in use."""
    case = cases[0]
    where = f"{case.device_name if case.device == 'cuda' else case.cpu}, {case.num_cores} cores"
    if case.device == "cpu":
        where += f"; a device is a rank pinned to {_count(case.cores_per_rank, 'core')}"
    num_launches = len(case.launches)
    timing = "verified only, not timed"
    if case.rounds:
        timing = f"median of {_count(case.rounds // num_launches, 'round')}"
        timing += f" in each of {num_launches} launches" if num_launches > 1 else ""
    lines = [
        *_works(cases),
        f"{where}; torch {case.torch}, {case.backend}; {timing}",
    ]
    lines += dict.fromkeys(filter(None, map(_how_verified, cases)))
    if case.num_gpus > 1 and case.rounds and single_device_throughput(cases) is None:
        lines.append("speed-up needs the one-device case in the same run")
    if any(case.oversubscribed for case in cases):
        lines.append(f"{_OVERSUBSCRIBED} oversubscribed: more ranks than devices, correct but not a measure of scaling")
    if any(case.degenerate for case in cases):
        lines.append(f"{_DEGENERATE} degenerate: the same mesh as an earlier strategy")
    copied = {f"tp{case.tp}": case.kv_copies for case in cases if case.kv_copies > 1}
    lines += [
        f"{mesh}: more shards than key and value heads; up to {copies} hold a copy of one, counted in their bytes"
        for mesh, copies in copied.items()
    ]
    if any(case.shared for case in cases):
        lines.append(f"{_SHARED} shared: another run of gpt_parallel used the same devices, slower than alone")
    lines += [f"{NOT_REPEATABLE} {why}" for why in dict.fromkeys(c.why_not_repeatable for c in cases) if why]
    return [plain(line) for line in lines]


def _works(cases: Sequence[CaseSummary]) -> list[str]:
    """A sentence for each workload; workloads that differ only in their batch size share one."""
    works: dict[tuple[str, ...], dict[int, str]] = {}
    for case in cases:
        works.setdefault(case.work, {})[case.batch_size] = case.workload
    return [
        f"{model}; {next(iter(sizes.values())) if len(sizes) == 1 else _batches(workload, sizes)}; {prompts}"
        for (model, workload, prompts), sizes in works.items()
    ]


def _batches(workload: str, sizes: Iterable[int]) -> str:
    return f"{workload}, batch {', '.join(map(str, sizes))}"


def _how_verified(case: CaseSummary) -> str:
    """The judge and the attention kernels."""
    parts = []
    if case.judge is not None:
        parts.append(f"verified against one device, {_PROVED.get(case.judge, f'proved by {case.judge}')}")
    if case.attention_prefill or case.attention_decode:
        parts.append(f"attention: {case.attention_prefill or '–'} in prefill, {case.attention_decode or '–'} in decode")
    return "; ".join(parts)


def shares(case: CaseSummary) -> dict[str, float] | None:
    """Each part's share of the pass, over all ranks; None where the case was not broken down."""
    found = {part: getattr(case, f"breakdown_{part}") for part in BREAKDOWN_PARTS}
    known = {part: share for part, share in found.items() if share is not None}
    return known if len(known) == len(BREAKDOWN_PARTS) else None


def render_breakdown(cases: Sequence[CaseSummary]) -> str:
    """A row for each case that was broken down; empty if none was."""
    rows = [
        [case.strategy, _devices(case), case.mesh, *(f"{part[name]:.1%}" for name in BREAKDOWN_PARTS)]
        for case in cases
        if (part := shares(case))
    ]
    return f"\n{MEANING}\n\n{text_table(('strategy', 'devices', 'mesh', *BREAKDOWN_PARTS), rows)}\n" if rows else ""


def render_ranks(result: RunResult) -> str:
    """A row for each rank of a run that was broken down; empty if it was not."""
    rows, methods = [], []
    for rank in result.ranks:
        breakdown, at = rank.diagnostics.breakdown, rank.place
        if breakdown is not None:
            methods.append(breakdown.method)
            parts = [getattr(breakdown, f"{name}_s") for name in ("wall", *BREAKDOWN_PARTS)]
            place = [str(at.rank), str(at.stage), str(at.replica), str(at.shard)]
            rows.append(place + [f"{seconds * 1000:.1f} ms" for seconds in parts])
    if not rows:
        return ""
    table = text_table(("rank", "stage", "replica", "shard", "pass", *BREAKDOWN_PARTS), rows)
    return f"\n{MEANING}\n\n{table}\n\n{methods[0]}\n"
