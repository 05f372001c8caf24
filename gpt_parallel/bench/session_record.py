"""The record of a pytest session in pytest-benchmark's JSON schema, and the report from it."""

import json
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from gpt_parallel.base.atomic_files import StagedFiles
from gpt_parallel.bench.environment import git_branch, git_state
from gpt_parallel.launch.devices import available_cores, cpu_name
from gpt_parallel.report.saved_run import NotRun, describe_incompleteness
from gpt_parallel.schema.summary import CaseSummary
from gpt_parallel.version import __version__

FILE_NAME = "benchmarks.json"


class SessionRecord:
    """The cases of a session in the order they ran, and those that left no timing."""

    def __init__(self) -> None:
        self._not_run: dict[str, dict[str, Any]] = {}
        self.resumed: list[str] = []  # names of cases with figures from an earlier session
        self.incomplete: str | None = None
        self._rows: dict[str, tuple[CaseSummary, dict[str, Any] | None]] = {}

    def add(self, nodeid: str, name: str, group: str | None, params: dict[str, Any], summary: CaseSummary) -> None:
        seconds = [value for launch in summary.launches for value in launch.round_seconds]
        benchmark = None
        if seconds:
            benchmark = {
                "name": name,
                "fullname": nodeid,
                "group": group,
                "params": params,
                "extra_info": summary.model_dump(mode="json"),
                "stats": _stats(seconds),
            }
        self._rows[nodeid] = summary, benchmark
        self._not_run.pop(nodeid, None)  # another plugin ran it again

    def discard(self, nodeid: str) -> None:
        """Remove a case whose test failed afterwards."""
        self._rows.pop(nodeid, None)

    def add_not_run(self, nodeid: str, name: str, outcome: str, reason: str) -> None:
        self._not_run[nodeid] = {"case": name, "outcome": outcome, "reason": reason}

    def add_not_reached(self, nodeid: str, name: str, ended_by: str) -> None:
        """Add a case that the session did not reach, which makes the record incomplete."""
        self.incomplete = ended_by
        self.add_not_run(nodeid, name, "not reached", ended_by)

    @property
    def not_run(self) -> list[dict[str, Any]]:
        """The cases without timings, in the order in which the session met them."""
        return list(self._not_run.values())

    @property
    def ours(self) -> dict[str, Any]:
        """The document's "gpt_parallel": cases without timings, and cases from an earlier session."""
        found: dict[str, Any] = {"not_run": self.not_run}
        if self.resumed:
            found["resumed"] = self.resumed
        if self.incomplete is not None:
            found["incomplete"] = self.incomplete
        return found

    @property
    def incompleteness(self) -> str | None:
        """A sentence for a session that ended early, else None."""
        return describe_incompleteness(self.incomplete, [NotRun(**entry) for entry in self.not_run], len(self._rows))

    @property
    def summaries(self) -> list[CaseSummary]:
        return [summary for summary, _ in self._rows.values()]

    @property
    def is_timed(self) -> bool:
        return any(benchmark for _, benchmark in self._rows.values())

    @property
    def has_failures(self) -> bool:
        return any(entry["outcome"] == "failed" for entry in self.not_run)

    def document(self) -> dict[str, Any]:
        """The session in the form of `--benchmark-json`, with the parts that reports read."""
        if self.summaries:
            last = self.summaries[-1]
            node, cpu, num_cores = last.hostname, last.cpu, last.num_cores
            commit, dirty = last.git_commit, last.git_dirty
        else:
            node, cpu, num_cores = platform.node(), cpu_name(), len(available_cores())
            commit, dirty = git_state()
        return {
            "machine_info": {
                "node": node,
                "machine": platform.machine(),
                "cpu": {"brand_raw": cpu, "count": num_cores},
            },
            "commit_info": {"id": commit, "branch": git_branch() if commit else None, "dirty": dirty},
            "datetime": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "version": f"gpt_parallel {__version__}",
            "benchmarks": [benchmark for _, benchmark in self._rows.values() if benchmark],
            "gpt_parallel": self.ours,
        }

    def write_report(self, directory: Path) -> list[Path]:
        """The JSON and every report format; raises OSError or ReportError where the directory cannot be written."""
        from gpt_parallel.report.render import write_report
        from gpt_parallel.report.saved_run import load_run

        path = directory / FILE_NAME
        with StagedFiles() as files:
            written = files.write(path, json.dumps(self.document(), indent=1) + "\n")
            run = replace(load_run(written, label=path.stem), path=path)
            write_report([run], directory, files=files)
        return files.paths


def _stats(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "min": min(seconds),
        "max": max(seconds),
        "mean": fmean(seconds),
        "median": median(seconds),
        "stddev": stdev(seconds) if len(seconds) > 1 else 0.0,
        "rounds": len(seconds),
        "data": list(seconds),
    }
