"""Reads pytest-benchmark JSON (version 4 or later), ours and anybody's, or refuses it by name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt_parallel.result import CaseSummary, PositiveCount, PositiveSeconds, Seconds
from gpt_parallel.spec import Frozen, SpecError


class ReportError(SpecError):
    """A saved file that cannot be used."""


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
    """A plain benchmark may be too short for its clock; a generation case never is."""

    min: PositiveSeconds
    max: PositiveSeconds
    mean: PositiveSeconds
    median: PositiveSeconds


class NotRun(Frozen):
    """A case that left no timing, and why."""

    case: str
    outcome: Literal["skipped", "failed"]
    reason: str


@dataclass(frozen=True)
class Case:
    """One benchmark of a file; `summary` is there for generation cases only."""

    name: str
    fullname: str
    group: str | None
    stats: Stats
    summary: CaseSummary | None

    @property
    def identity(self) -> tuple[object, ...] | None:
        """What stays the same when a case is only renamed."""
        s = self.summary
        return None if s is None else (s.strategy, s.num_gpus, s.mesh, s.workload_sha256)


@dataclass(frozen=True)
class SavedRun:
    """One file."""

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

    @property
    def summaries(self) -> list[CaseSummary]:
        return [case.summary for case in self.cases if case.summary is not None]

    @property
    def failed(self) -> dict[str, str]:
        """Why each failed case failed, by its name; of several reasons the first."""
        reasons: dict[str, str] = {}
        for entry in self.not_run:
            if entry.outcome == "failed":
                reasons.setdefault(entry.case, entry.reason)
        return reasons


def load_runs(paths: Sequence[Path]) -> list[SavedRun]:
    """Read files, labelled by their names (by their paths where names are the same)."""
    stems = [path.stem for path in paths]
    labels = [path.stem if stems.count(path.stem) == 1 else str(path) for path in paths]
    if len(set(labels)) != len(labels):
        raise ReportError("the same file is given twice")
    return [load_run(path, label) for path, label in zip(paths, labels, strict=True)]


def load_run(path: Path, label: str | None = None) -> SavedRun:
    """Read one file. Raises ReportError naming the file and what is wrong in it; it is never half-read."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not valid JSON, perhaps truncated ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("benchmarks"), list):
        raise ReportError(f"{path}: not a pytest-benchmark file: it has no list of benchmarks")
    cases = _read_all(path, document["benchmarks"], "benchmarks", _read_case)
    names = [case.fullname for case in cases]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ReportError(f"{path}: case {twice!r} is there twice")
    ours = _mapping(document.get("gpt_parallel"))
    commit, machine = _mapping(document.get("commit_info")), _mapping(document.get("machine_info"))
    return SavedRun(
        path=path,
        label=label or path.stem,
        commit=str(commit.get("id") or ""),
        branch=str(commit.get("branch") or ""),
        dirty=bool(commit.get("dirty")),
        datetime=str(document.get("datetime") or ""),
        machine=_machine(machine),
        cases=tuple(cases),
        not_run=tuple(_read_all(path, ours.get("not_run") or [], "not_run", NotRun.model_validate)),
        host=str(machine.get("node") or ""),
    )


def _read_all(path: Path, entries: Any, what: str, read: Any) -> list[Any]:
    """Every entry, or one error that names the first few bad ones."""
    if not isinstance(entries, list):
        raise ReportError(f"{path}: {what} must be a list")
    found, problems = [], []
    for index, entry in enumerate(entries):
        name = entry.get("name", index) if isinstance(entry, dict) else index
        try:
            found.append(read(entry))
        except ValidationError as error:
            problems += [f"{path}: {what} {name}: {text}" for text in SpecError.from_validation(error).problems]
        except (KeyError, TypeError, AttributeError):
            problems.append(f"{path}: {what} {name}: not a pytest-benchmark entry")
    if problems:
        raise ReportError(problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else []))
    return found


def _read_case(entry: dict[str, Any]) -> Case:
    extra = entry.get("extra_info")
    is_ours = isinstance(extra, dict) and "workload_sha256" in extra
    return Case(
        name=str(entry["name"]),
        fullname=str(entry["fullname"]),
        group=None if entry.get("group") is None else str(entry["group"]),
        stats=(GenerationStats if is_ours else Stats).model_validate(entry["stats"]),
        summary=CaseSummary.model_validate(extra) if is_ours else None,
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _machine(info: dict[str, Any]) -> str:
    cpu = _mapping(info.get("cpu"))
    name = cpu.get("brand_raw") or info.get("processor") or info.get("machine") or "unknown machine"
    return f"{name}, {cpu.get('count', '?')} cores"
