"""`gpt-parallel ab`: two commits, side by side."""

from typing import Annotated

import typer

from gpt_parallel.cli.common import errors, verdict_codes
from gpt_parallel.cli.gate import percentage

HELP = """Measure two git commits alternately and report whether the second is slower.

Both are checked out into temporary worktrees; your working tree is not touched. Fresh launches run in the order
A B B A ... and are compared block by block. Every case is judged after --blocks blocks. If no case is a FAIL or an
ERROR and at least one is INCONCLUSIVE, the same number of blocks is measured again and all cases are judged again, at
most twice. Arguments after -- are passed to pytest.

Exit codes: 0 no slowdown beyond the threshold, 1 slowdown, 2 wrong usage or unusable data, 3 inconclusive.

\b
Examples:
  gpt-parallel ab main HEAD -- benchmarks -k 2gpu
  gpt-parallel ab v1.0 my-branch --blocks 8 --threshold 5% -- benchmarks
"""


def ab(
    base_ref: Annotated[str, typer.Argument(help="Commit, branch or tag to compare with.", show_default=False)],
    head_ref: Annotated[str, typer.Argument(help="Commit, branch or tag to judge.", show_default=False)],
    pytest_args: Annotated[list[str] | None, typer.Argument(help="After --: arguments for pytest.")] = None,
    blocks: Annotated[int, typer.Option(help="Pairs of launches to measure before each of at most 3 judgements.")] = 6,
    threshold: Annotated[str, typer.Option(help="Largest tolerated slowdown.")] = "3%",
) -> None:
    with verdict_codes():
        from gpt_parallel.bench.ab import run_ab
        from gpt_parallel.report.compare.gate_output import to_text

        result = run_ab(
            base_ref,
            head_ref,
            pytest_args or [],
            num_blocks=blocks,
            threshold=percentage(threshold, "--threshold"),
            log=errors.print,
        )
        print(to_text(result))
    raise typer.Exit(result.exit_code)
