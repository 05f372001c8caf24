"""`gpt-parallel run`: runs one case without pytest."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.escaping import plain_lines, slug
from gpt_parallel.base.redaction import redact
from gpt_parallel.bench.progress import LOG_EVERY_S, CaseProgress
from gpt_parallel.bench.suite import InjectedFaultError, Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.cli.common import InjectFault, errors, is_logging_to_terminal, make_writable, option, writing
from gpt_parallel.inputs.cases import PlannedCase
from gpt_parallel.inputs.meshes import CUSTOM, chosen_mesh
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch import fork_server
from gpt_parallel.layout.strategies import check_known
from gpt_parallel.report.tables import render_ranks, render_table
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.run import RunSpec

HELP = """Run one case without pytest: launch the ranks, verify every token, time the rounds.

Exit codes: 0 verified, 1 the run failed or did not verify, 2 wrong usage, 130 interrupted.

\b
Examples:
  gpt-parallel run --strategy pure_data_parallel --num-gpus 2
  gpt-parallel run --preset smoke --strategy full_model_parallel --num-gpus 4
  gpt-parallel run --strategy tensor_data_hybrid --num-gpus 2
      --model ./my-gpt2 --prompts prompts.jsonl --output-dir out
  gpt-parallel run --strategy full_model_parallel --num-gpus 4 --tensor-parallel-size 4
  gpt-parallel run --tensor-parallel-size 2 --pipeline-parallel-size 2
  gpt-parallel run --config configs/one-case.yaml --num-gpus 2
  gpt-parallel run --preset smoke --print-config > mine.yaml
"""


def run(
    output_dir: Annotated[
        Path | None, option("--output-dir", "Directory for result.json. Default: reports/<strategy>-<n>gpu.")
    ] = None,
    inject_fault: InjectFault = None,
    *,
    settings: Settings,
) -> None:
    if settings.launches > 1:
        errors.print(f"note: run makes one launch; launches = {settings.launches} is for pytest benchmarks")
    if settings.batch_sizes:
        errors.print(
            f"note: run uses batch_size = {settings.batch_size}; batch_sizes = {settings.batch_sizes} is for pytest "
            "benchmarks"
        )
        settings = settings.model_copy(update={"batch_sizes": None})
    with _progress() as progress:
        case = _choose_case(settings)
        fork_server.warm_up()
        suite = Suite(settings, progress, FaultSpec.parse(inject_fault) if inject_fault else None)
        spec = _with_own_profile(suite.spec(*case), settings)
        for note in suite.notes:
            errors.print(f"note: {plain_lines(redact(note))}")
        progress.start(spec)
        directory = output_dir or Path("reports") / slug(spec.name)
        make_writable(directory)
        path = directory / "result.json"
        if path.exists():  # if this run fails, an earlier result must not be taken for its own
            path.replace(path.with_name("result.previous.json"))
        try:
            result = suite.run(spec)
        except InjectedFaultError as error:
            _write(path, error.result)
            raise
    _print(result, spec.execution.profile)
    _write(path, result)
    print(f"result: {redact(str(path))}")


def _write(path: Path, result: RunResult) -> None:
    with writing(path):
        write_atomically(path, result.model_dump_json(indent=1) + "\n")


def _with_own_profile(spec: RunSpec, settings: Settings) -> RunSpec:
    """Write a single run's traces into the profile directory itself, not into one per case."""
    profile = str(Path(settings.profile).absolute()) if settings.profile is not None else None
    return spec.with_execution(profile=profile)


def _choose_case(settings: Settings) -> PlannedCase:
    """The one case that the settings mean; by default pure data parallelism on one device."""
    counts, strategies = settings.device_counts, settings.strategies
    if len(counts) > 1:
        raise SpecError(f"--num-gpus {settings.num_gpus}: run takes one device count (pytest benchmarks takes many)")
    if len(strategies) > 1:
        raise SpecError(f"--strategy {settings.strategy}: run takes one strategy (pytest benchmarks takes many)")
    count = counts[0] if counts else None
    if settings.has_degrees:
        strategy = strategies[0] if strategies else CUSTOM
    else:
        strategy = strategies[0] if strategies else "pure_data_parallel"
        if count is None and strategy == "pure_data_parallel":
            count = 1
        elif count is None:
            check_known(strategy)
            raise SpecError(f"--num-gpus is missing; give the number of devices that {strategy} uses")
    mesh = chosen_mesh(settings, strategy, count)
    if mesh.size == 1 and strategy not in ("pure_data_parallel", CUSTOM):
        errors.print(f"note: on one device {strategy} is the whole model on it, as every strategy is")
    return PlannedCase(strategy, mesh.size)


def _print(result: RunResult, profile: str | None) -> None:
    check = result.verification
    print(render_table([summarise([result])]))
    if breakdown := render_ranks(result):
        print(breakdown)
    if profile is not None:
        print(f"top operators of rank 0 (traces and tables of all ranks: {redact(profile)}):")
        print((Path(profile) / "rank_0.txt").read_text(encoding="utf-8"))
    if check.status == "skipped":
        print("not verified (--no-verify)")
    else:
        judged = "" if check.judge == "engine" else f", proved by {check.judge}"
        print(f"verified: {check.status}, {check.tokens_compared} tokens compared with a single-device run{judged}")


@contextmanager
def _progress() -> Iterator[CaseProgress]:
    """Show progress on a line that changes on a terminal, and on lines of its own in a log.

    Where --verbose or --debug log every rank's phases, rank 0's are not shown twice.
    """
    if is_logging_to_terminal():
        yield CaseProgress(None)
        return
    if not errors.is_terminal:
        yield CaseProgress(errors.print, LOG_EVERY_S)
        return
    with errors.status("starting") as status:
        yield CaseProgress(status.update)
