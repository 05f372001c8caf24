"""`gpt-parallel gate`: compares two saved runs and fails on a regression."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gpt_parallel.base.atomic_files import write_atomically
from gpt_parallel.base.errors import SpecError
from gpt_parallel.cli.common import describe, errors, option, verdict_codes

if TYPE_CHECKING:
    from gpt_parallel.report.compare.verdicts import GateResult, Rules

HELP = """Compare two saved runs case by case and fail on a regression.

Both runs need at least 3 launches per case (pytest benchmarks --gpt-launches 6 --benchmark-json FILE). A case that
cannot be compared (missing, renamed, failed, unverified, other machine or workload) never passes.

Exit codes: 0 pass, 1 regression, 2 wrong usage or unusable data, 3 inconclusive.

\b
Examples:
  gpt-parallel gate base.json head.json
  gpt-parallel gate base.json head.json --metric ttft --threshold 10%
  gpt-parallel gate base.json head.json --case "*4gpu*=15%" --format github
"""


def gate(
    base: Annotated[
        Path,
        typer.Argument(help="Saved run to compare with: a benchmark file or a report directory.", show_default=False),
    ],
    head: Annotated[Path, typer.Argument(help="Saved run to judge, likewise.", show_default=False)],
    threshold: Annotated[str, typer.Option(help="Largest tolerated change for the worse.")] = "5%",
    metric: Annotated[str, typer.Option(help="Metric to judge: throughput, ttft, tpot or memory.")] = "throughput",
    case: Annotated[list[str] | None, option("--case", "PATTERN=10%: another threshold for matching cases.")] = None,
    allow_new: Annotated[bool, option("--allow-new", "Accept verified cases that only HEAD has.")] = False,
    allow_removed: Annotated[bool, option("--allow-removed", "Accept cases that HEAD did not run.")] = False,
    allow_other_host: Annotated[bool, option("--allow-other-host", "Accept runs of two equal machines.")] = False,
    allow_single_launch: Annotated[
        bool, option("--allow-single-launch", "Judge fewer than 3 launches by their difference only.")
    ] = False,
    form: Annotated[str, typer.Option("--format", help="Output format: text or github.")] = "text",
    junit: Annotated[Path | None, option("--junit", "Also write a JUnit file.")] = None,
) -> None:
    with verdict_codes():
        from gpt_parallel.report.compare.gate import METRICS
        from gpt_parallel.report.compare.verdicts import Rules

        try:
            if metric not in METRICS:
                raise SpecError(f"--metric {metric!r}: allowed are {', '.join(METRICS)}")
            if form not in ("text", "github"):
                raise SpecError(f"--format {form!r}: allowed are text, github")
            rules = Rules(
                metric=metric,
                threshold=percentage(threshold, "--threshold"),
                thresholds=tuple(_pattern(text) for text in case or ()),
                allow_new=allow_new,
                allow_removed=allow_removed,
                allow_other_host=allow_other_host,
                allow_single_launch=allow_single_launch,
            )
            result = _decide(base, head, rules)
            _publish(result, form, junit)
        except Exception as error:
            _publish_unusable(error, form, junit)
            raise
    raise typer.Exit(result.exit_code)


def _decide(base: Path, head: Path, rules: "Rules") -> "GateResult":
    from gpt_parallel.bench.saved_files import load_runs
    from gpt_parallel.report.compare.gate import decide

    before, after = load_runs([base, head]) if base != head else (load_runs([base]) * 2)
    return decide(before, after, rules)


def _publish(result: "GateResult", form: str, junit: Path | None) -> None:
    from gpt_parallel.report.compare.gate_output import to_github, to_junit, to_text

    if junit is not None:
        try:
            write_atomically(junit, to_junit(result))
        except OSError as error:
            raise SpecError(f"--junit {junit}: cannot be written ({error.strerror})") from error
    print(to_github(result) if form == "github" else to_text(result))
    if form == "github":
        errors.print(to_text(result))


def _publish_unusable(error: Exception, form: str, junit: Path | None) -> None:
    """Publish an error in place of a verdict: an older JUnit file would be taken for this run's."""
    from gpt_parallel.report.compare.gate_output import to_github, to_junit
    from gpt_parallel.report.compare.verdicts import GateResult, Rules

    result = GateResult(Rules())
    result.add_error("all cases", describe(error))
    if junit is not None:
        with suppress(OSError):
            write_atomically(junit, to_junit(result))
    if form == "github":
        print(to_github(result))


def percentage(text: str, option_name: str) -> float:
    """ "5%" or "0.05" as a fraction; "5" might mean either and is refused."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < (10 if text.endswith("%") else 1):
        raise SpecError(f"{option_name} {text!r}: must be a percentage such as 5%")
    return value


def _pattern(text: str) -> tuple[str, float]:
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern:
        raise SpecError(f"--case {text!r}: must look like PATTERN=10%")
    return pattern, percentage(value, "--case")
