"""Reads pytest-benchmark JSON (version 4 or later), with or without cases of gpt_parallel."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.base.untrusted_files import parse_json, read_whole
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.result import schema_problem
from gpt_parallel.schema.summary import SUMMARY_VERSION, CaseSummary, PositiveCount, PositiveSeconds, Seconds

MAX_BYTES = 256 << 20


class ReportError(SpecError):
    """A saved file that cannot be used."""


class ResultFileError(ReportError):
    """A file that has one run's result instead of a session's benchmarks."""


class Stats(BaseModel):
    """The part of pytest-benchmark's statistics that reports use; seconds."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    min: Seconds
    max: Seconds
    mean: Seconds
    median: Seconds
    stddev: Seconds
    rounds: PositiveCount


class GenerationStats(Stats):
    """The statistics of a generation case, whose times are never zero."""

    min: PositiveSeconds
    max: PositiveSeconds
    mean: PositiveSeconds
    median: PositiveSeconds


class NotRun(Frozen):
    """A case that left no timing, and why."""

    case: str
    outcome: Literal["skipped", "failed", "not reached"]
    reason: str


@dataclass(frozen=True)
class Case:
    """One benchmark of a file; only generation cases have a `summary`."""

    name: str
    fullname: str
    group: str | None
    stats: Stats
    summary: CaseSummary | None

    @property
    def identity(self) -> tuple[object, ...] | None:
        """The identity of a case, which does not change with its name."""
        s = self.summary
        return None if s is None else (s.strategy, s.num_gpus, s.mesh, s.workload_sha256)


@dataclass(frozen=True)
class SavedRun:
    """The content of one file."""

    path: Path
    label: str
    commit: str
    branch: str
    dirty: bool
    datetime: str
    machine: str
    cases: tuple[Case, ...]
    not_run: tuple[NotRun, ...] = ()
    host: str = ""
    incomplete: str = ""  # why the run ended before all its cases did

    @property
    def summaries(self) -> list[CaseSummary]:
        return [case.summary for case in self.cases if case.summary is not None]

    @property
    def failed(self) -> dict[str, str]:
        """The first reason for each case that failed or was not reached, by its name."""
        reasons: dict[str, str] = {}
        for entry in self.not_run:
            if entry.outcome != "skipped":
                unreached = entry.outcome == "not reached"
                reasons.setdefault(entry.case, f"not reached ({entry.reason})" if unreached else entry.reason)
        return reasons

    @property
    def incompleteness(self) -> str | None:
        """A sentence for a run that ended early, None for others."""
        return describe_incompleteness(self.incomplete or None, self.not_run, len(self.cases))


def describe_incompleteness(reason: str | None, not_run: Sequence[NotRun], num_timed: int) -> str | None:
    """A sentence for a run that ended early, None for one that did not."""
    missing = sum(entry.outcome == "not reached" for entry in not_run)
    if not missing and reason is None:
        return None
    total = num_timed + len({entry.case for entry in not_run})
    counts = f"{missing} of {total} cases {'was' if missing == 1 else 'were'} not reached"
    return f"INCOMPLETE: {reason or 'ended early'}; {counts}."


def load_run(path: Path, label: str | None = None) -> SavedRun:
    """Read one file. Raises ReportError naming the file and what is wrong in it; it is never half-read."""
    try:
        document = parse_json(read_whole(path, MAX_BYTES, "benchmark file"), allow_nan=True)
    except SpecError as error:
        raise ReportError(error.problems) from error
    except ValueError as error:
        raise ReportError(f"{path}: {error}") from error
    if isinstance(document, dict) and {"spec", "figures", "verification"} <= set(document):
        raise ResultFileError(f"{path}: this is a result.json of gpt-parallel run")
    return run_of_document(document, path, label)


def run_of_document(document: Any, path: Path, label: str | None = None) -> SavedRun:
    """The run in a parsed benchmark file; `path` is for messages. Raises ReportError."""
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise ReportError(f"{path}: not a pytest-benchmark file: it has no list of benchmarks")
    if not isinstance(document.get("gpt_parallel", {}), dict):
        raise ReportError(f"{path}: gpt_parallel must be an object")
    cases = _read_all(path, document["benchmarks"], "benchmarks", _read_case)
    for name, count in Counter(case.fullname for case in cases).items():
        if count > 1:
            raise ReportError(f"{path}: duplicate case {quoted(name)}")
    ours = _mapping(document.get("gpt_parallel"))
    commit, machine = _mapping(document.get("commit_info")), _mapping(document.get("machine_info"))
    return SavedRun(
        path=path,
        label=label or path.stem,
        commit=_string(commit.get("id")),
        branch=_string(commit.get("branch")),
        dirty=bool(commit.get("dirty")),
        datetime=_string(document.get("datetime")),
        machine=_machine(machine),
        cases=tuple(cases),
        not_run=tuple(_read_all(path, ours.get("not_run", []), "not_run", NotRun.model_validate)),
        host=_string(machine.get("node")),
        incomplete=_text(path, ours, "incomplete"),
    )


def _read_all(path: Path, entries: Any, what: str, read: Any) -> list[Any]:
    """All entries; one error names the first few bad ones."""
    if not isinstance(entries, list):
        raise ReportError(f"{path}: {what} must be a list")
    found, problems = [], []
    for index, entry in enumerate(entries):
        name = (isinstance(entry, dict) and _string(entry.get("name"))[:200]) or index
        try:
            found.append(read(entry))
        except ValidationError as error:
            problems += [f"{path}: {what} {name}: {text}" for text in SpecError.from_validation(error).problems]
        except SpecError as error:
            problems += [f"{path}: {what} {name}: {text}" for text in error.problems]
        except (KeyError, TypeError):
            problems.append(f"{path}: {what} {name}: not a pytest-benchmark entry")
    if problems:
        raise ReportError(problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else []))
    return found


def _read_case(entry: dict[str, Any]) -> Case:
    if not (isinstance(entry, dict) and isinstance(entry["name"], str) and isinstance(entry["fullname"], str)):
        raise TypeError("not an object with names")
    extra, group = entry.get("extra_info"), entry.get("group")
    ours = extra if isinstance(extra, dict) and "workload_sha256" in extra else None
    return Case(
        name=entry["name"],
        fullname=entry["fullname"],
        group=None if group is None else str(group),
        stats=(Stats if ours is None else GenerationStats).model_validate(entry["stats"]),
        summary=None if ours is None else _read_summary(ours),
    )


def _read_summary(extra: dict[str, Any]) -> CaseSummary:
    if problem := schema_problem(extra.get("schema_version"), SUMMARY_VERSION):
        raise SpecError(problem)
    known = {name: _as_tuples(value) for name, value in extra.items() if name in CaseSummary.model_fields}
    return CaseSummary.model_validate(known, strict=True)  # strict: "4" is not a number


def _as_tuples(value: Any) -> Any:
    """Lists of JSON as tuples, as strict validation requires."""
    if isinstance(value, dict):
        return {name: _as_tuples(inner) for name, inner in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _text(path: Path, ours: dict[str, Any], name: str) -> str:
    value = ours.get(name, "")
    if not isinstance(value, str):
        raise ReportError(f"{path}: gpt_parallel.{name} must be a text, not {quoted(value)}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _machine(info: dict[str, Any]) -> str:
    cpu = _mapping(info.get("cpu"))
    names = (cpu.get("brand_raw"), info.get("processor"), info.get("machine"))
    name = next((text for text in map(_string, names) if text), "unknown machine")
    count = cpu.get("count")
    return f"{name}, {count if type(count) is int else '?'} cores"
