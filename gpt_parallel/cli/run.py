"""`gpt-parallel run`: one case without pytest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from gpt_parallel.case import summarise
from gpt_parallel.cli.common import errors, option
from gpt_parallel.launch import fork_server
from gpt_parallel.launch.local import OnPhase
from gpt_parallel.result import RunResult, write_atomically
from gpt_parallel.settings import Settings
from gpt_parallel.spec import SpecError
from gpt_parallel.strategies import STRATEGIES
from gpt_parallel.suite import CUSTOM, Suite, custom_mesh
from gpt_parallel.table import render_table

HELP = """Run one case without pytest: launch the ranks, verify every token, time the rounds.

Exit codes: 0 verified, 1 the run failed or did not verify, 2 wrong usage, 130 interrupted.

\b
Examples:
  gpt-parallel run --strategy pure_data_parallel --num-gpus 2
  gpt-parallel run --preset smoke --strategy full_model_parallel --num-gpus 4
  gpt-parallel run --strategy tensor_data_hybrid --num-gpus 2
      --model ./my-gpt2 --prompts prompts.jsonl --output-dir out
  gpt-parallel run --tensor-parallel-size 2 --pipeline-parallel-size 2
"""


def run(
    strategy: Annotated[str | None, option("--strategy", f"One of: {', '.join(STRATEGIES)}.")] = None,
    output_dir: Annotated[
        Path | None, option("--output-dir", "Where result.json goes. Default: reports/<strategy>-<n>gpu.")
    ] = None,
    *,
    settings: Settings,
) -> None:
    with _progress() as on_phase:
        case = _choose_case(settings, strategy)
        fork_server.warm_up()
        suite = Suite(settings, on_phase)
        spec = suite.spec(*case)
        directory = output_dir or Path("reports") / spec.name
        _make_writable(directory)
        path = directory / "result.json"
        path.unlink(missing_ok=True)  # should this run fail, an earlier one's figures are not its result
        result = suite.run(spec)
        write_atomically(path, result.model_dump_json(indent=1) + "\n")
    _print(result, path)


def _choose_case(settings: Settings, strategy: str | None) -> tuple[str, int]:
    counts = settings.device_counts
    if len(counts) > 1:
        raise SpecError(f"--num-gpus {settings.num_gpus}: one run has one device count")
    if settings.has_custom_mesh:
        if strategy is not None:
            raise SpecError("give either a strategy or parallel sizes, not both")
        return CUSTOM, custom_mesh(settings, counts[0] if counts else None).size
    if strategy is None:
        raise SpecError(f"--strategy is missing; allowed: {', '.join(STRATEGIES)} (or give the parallel sizes)")
    if not counts:
        raise SpecError("--num-gpus is missing: how many devices the strategy is to use")
    return strategy, counts[0]


def _make_writable(directory: Path) -> None:
    """Refuse an output directory that cannot be written before hours of work go into it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".gpt-parallel-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SpecError(f"output directory {directory}: cannot be written ({error.strerror})") from error


def _print(result: RunResult, path: Path) -> None:
    check = result.verification
    print(render_table([summarise([result])]))
    if check.status == "skipped":
        print("not verified (--no-verify)")
    else:
        print(f"verified: {check.status}, {check.tokens_compared} tokens compared with a single-device run")
    print(f"result: {path}")


@contextmanager
def _progress() -> Iterator[OnPhase]:
    """Rank 0's phases: a status line on a terminal, one line each in a log."""
    if not errors.is_terminal:
        yield lambda rank, phase: errors.print(phase) if rank == 0 else None
        return
    with errors.status("starting") as status:
        yield lambda rank, phase: status.update(phase) if rank == 0 else None
