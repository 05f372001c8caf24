"""`gpt-parallel ab`: two commits, side by side."""

from typing import Annotated

import typer

from gpt_parallel.cli.common import errors, verdict_codes
from gpt_parallel.cli.gate import percentage

HELP = """Measure two git commits in turn and say whether the second is slower.

Both are checked out into temporary worktrees; your working tree is not touched. Fresh launches run in the order
A B B A ... and are compared block by block. After the asked number of blocks every case is judged. While none FAILs or
is an ERROR and at least one is INCONCLUSIVE, as many blocks again are measured and all are judged anew, at most twice.
Everything after -- goes to pytest.

Exit codes: 0 no slowdown beyond the threshold, 1 slowdown, 2 wrong usage or unusable data, 3 inconclusive.

\b
Examples:
  gpt-parallel ab main HEAD -- benchmarks -k 2gpu
  gpt-parallel ab v1.0 my-branch --blocks 8 --threshold 5% -- benchmarks
"""


def ab(
    base_ref: Annotated[str, typer.Argument(help="Commit, branch or tag to compare with.", show_default=False)],
    head_ref: Annotated[str, typer.Argument(help="Commit, branch or tag to judge.", show_default=False)],
    pytest_args: Annotated[list[str] | None, typer.Argument(help="After --: what pytest runs.")] = None,
    blocks: Annotated[int, typer.Option(help="Pairs to measure before each look, of which there are at most 3.")] = 6,
    threshold: Annotated[str, typer.Option(help="Worst tolerated slowdown.")] = "3%",
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
