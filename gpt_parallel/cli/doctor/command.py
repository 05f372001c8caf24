"""`gpt-parallel doctor`: checks whether a job can run on this machine, and gives a remedy for each problem."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.escaping import plain
from gpt_parallel.base.redaction import redact, redact_tree
from gpt_parallel.cli.common import errors, option
from gpt_parallel.cli.doctor.cases import Feasibility, judge_cases
from gpt_parallel.cli.doctor.checks import check
from gpt_parallel.cli.doctor.connectivity import run_self_test
from gpt_parallel.cli.doctor.facts import Facts, SelfTest
from gpt_parallel.cli.doctor.findings import Finding, can_run
from gpt_parallel.cli.doctor.gather import gather_facts
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch import fork_server

HELP = """Check whether this machine can run the job, and give a remedy for each problem.

Checks Python, torch, driver, GPUs, cores, memory, disk and model files, judges every case of the job that the options
describe (by default the main job), and tests communication between two ranks. Nothing is changed or downloaded.

Exit codes: 0 the job can run, 1 it cannot, 2 wrong usage.

\b
Examples:
  gpt-parallel doctor
  gpt-parallel doctor --preset xl --device cuda --num-gpus 8
  gpt-parallel doctor --config configs/xl.yaml --json
"""

_MARKS = {"ok": "ok", "note": "note", "warning": "WARN", "problem": "FAIL"}
_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "bold red"}


def doctor(
    as_json: Annotated[bool, option("--json", "Print everything as JSON.")] = False,
    output_dir: Annotated[Path, typer.Option(help="Directory that reports would be written to.")] = Path(
        "reports/latest"
    ),
    no_self_test: Annotated[bool, option("--no-self-test", "Skip the test that starts two ranks.")] = False,
    *,
    settings: Settings,
) -> None:
    with errors.status("checking this machine"):
        facts = gather_facts(output_dir)
        can_start = facts.torch is not None and not no_self_test
        if can_start:
            fork_server.warm_up()
        cases = _judge_cases(settings, facts)
        self_test = run_self_test(settings) if can_start and not isinstance(cases, str) else None
    findings = check(facts, settings, cases, self_test)
    verdicts = [] if isinstance(cases, str) else cases
    facts, verdicts, self_test, findings = redact_tree((facts, verdicts, self_test, findings))
    if as_json:
        print(json.dumps(_document(facts, verdicts, self_test, findings), indent=1))
    else:
        _print(facts, verdicts, findings, settings)
    if not can_run(findings):
        raise typer.Exit(1)


def _judge_cases(settings: Settings, facts: Facts) -> list[Feasibility] | str:
    try:
        return judge_cases(settings, facts)
    except SpecError as error:
        return "; ".join(error.problems)


def _document(
    facts: Facts, cases: Sequence[Feasibility], self_test: SelfTest | None, findings: Sequence[Finding]
) -> dict[str, object]:
    return {
        "schema_version": 1,
        "can_run": can_run(findings),
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "cases": [case.model_dump(mode="json") for case in cases],
        "self_test": self_test.model_dump(mode="json") if self_test else None,
        "facts": facts.model_dump(mode="json"),
    }


def _print(facts: Facts, cases: Sequence[Feasibility], findings: Sequence[Finding], settings: Settings) -> None:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    margin = max(len(finding.topic) for finding in findings)
    for finding in findings:
        console.print(f"{_MARKS[finding.level]:4}", style=_STYLES[finding.level], end="")
        console.print(f"  {finding.topic:{margin}}  {_indented(finding.text)}")
        if finding.remedy:
            console.print(f"      {'':{margin}}  → {finding.remedy}")
    console.print("\nCases")
    width = max((len(case.strategy) for case in cases), default=0)
    for case in cases:
        reason = f": {plain(case.reason)}" if case.reason else ""
        batch = "" if case.batch_size is None else f"  batch {case.batch_size}"
        console.print(f"  {case.strategy:{width}} {case.num_gpus:3}{batch}  {case.outcome}{reason}")
    console.print("\nModels on this disk")
    for model in facts.models:
        missing = "no files" if model.has_weights else "no trained weights exist; random ones are used"
        console.print(f"  {model.name:12}  {plain(model.problem or model.directory or missing)}")
    console.print("\ngpt-parallel help goes from symptoms to remedies.")
    problems = sum(finding.level == "problem" for finding in findings)
    can = "can run here." if not problems else f"cannot run here: {problems} problem(s), marked FAIL above."
    console.print(
        f"\nThe job ({plain(redact(settings.model))}, batch {settings.batch_sizes or settings.batch_size}) {can}"
    )


def _indented(text: str) -> str:
    """Remove control characters, and indent the further lines of a message under its first one."""
    return "\n        ".join(plain(line) for line in text.splitlines() if line.strip())
