"""Where the time went, as tables of a terminal: shares of a pass for each case, milliseconds for each rank of one."""

from collections.abc import Sequence

from gpt_parallel.report.tables import text_table
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.summary import CaseSummary

PARTS = ("compute", "communication", "waiting", "sampling", "host")
MEANING = (
    "Where the time goes in one extra pass: waiting is for peers (the pipeline's bubble), host is what is left, such "
    "as Python between the parts."
)


def shares(case: CaseSummary) -> dict[str, float] | None:
    """Each part's share of the pass, over all ranks; None where the case was not broken down."""
    found = {part: getattr(case, f"breakdown_{part}") for part in PARTS}
    known = {part: share for part, share in found.items() if share is not None}
    return known if len(known) == len(PARTS) else None


def render_breakdown(cases: Sequence[CaseSummary]) -> str:
    """A row for each case that was broken down; empty if none was."""
    rows = [
        [case.strategy, str(case.num_gpus), case.mesh, *(f"{part[name]:.1%}" for name in PARTS)]
        for case in cases
        if (part := shares(case))
    ]
    return f"\n{MEANING}\n\n{text_table(('strategy', 'devices', 'mesh', *PARTS), rows)}\n" if rows else ""


def render_ranks(result: RunResult) -> str:
    """A row for each rank of a run that was broken down; empty if it was not."""
    rows, methods = [], []
    for rank in result.ranks:
        if rank.breakdown is not None:
            methods.append(rank.breakdown.method)
            parts = [getattr(rank.breakdown, f"{name}_s") for name in ("wall", *PARTS)]
            place = [str(rank.rank), str(rank.stage), str(rank.replica), str(rank.shard)]
            rows.append(place + [f"{seconds * 1000:.1f} ms" for seconds in parts])
    if not rows:
        return ""
    table = text_table(("rank", "stage", "replica", "shard", "pass", *PARTS), rows)
    return f"\n{MEANING}\n\n{table}\n\n{methods[0]}\n"
