"""Keeps a pytest session's results: a journal while it runs, a report at its end, and notes about missing cases.

This is a plugin object of its own, which only sessions with generation cases have.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from gpt_parallel.base.errors import SpecError, see, why_no_directory
from gpt_parallel.base.redaction import redact, redact_tree
from gpt_parallel.base.signals import ignore_interrupts_until_exit, install_interrupt_handler
from gpt_parallel.base.warning_filters import printed_warnings
from gpt_parallel.bench.journal import Finished, Journal, JournalError, make_header
from gpt_parallel.bench.session_record import FILE_NAME, SessionRecord
from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.inputs.cases import notes_on_missing_cases
from gpt_parallel.inputs.models import has_published_weights, shipped_weights
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.pytest_plugin.items import is_case
from gpt_parallel.report.saved_run import ReportError
from gpt_parallel.report.tables import render_breakdown, render_table
from gpt_parallel.schema.result import RunResult
from gpt_parallel.schema.run import RunSpec
from gpt_parallel.schema.summary import CaseSummary

JOURNAL, KEPT_JOURNAL = "session.jsonl", "session.previous.jsonl"
# Fields of a spec that do not change the measured work, or are known only once ranks have met.
_FREE = {"execution": {"timeout_s", "log_dir", "oversubscribed"}}


class SessionKeeper:
    """The session's record, and the files made of it. Without `directory` it writes none."""

    def __init__(self, settings: Settings, directory: Path | None) -> None:
        self.record = SessionRecord()
        self._settings, self._directory = settings, directory
        self._journal: Journal | None = None
        self._expected: list[pytest.Item] = []
        self._measured: dict[str, Sequence[RunResult]] = {}  # not yet in the journal
        self._reached: set[str] = set()
        self._replayed: set[str] = set()
        self._ended_by = ""
        self._notes: list[str] = []
        self._is_resumed = self._is_printed = False

    def begin(self, items: Sequence[pytest.Item], *, resume: bool) -> list[str]:
        """Open the journal for these cases; return notes for the user. Raises SpecError if it cannot be opened."""
        self._expected, self._is_resumed = list(items), resume
        self._notes += notes_on_missing_cases(self._settings)
        if self._directory is None:
            return []
        path, kept = self._directory / JOURNAL, self._directory / KEPT_JOURNAL
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(
                f"report directory {self._directory}: cannot be made ({why_no_directory(error)}); "
                "use another with --gpt-report DIR" + see("permissions")
            ) from error
        self._journal = Journal(path, make_header(self._settings), resume=resume, keep_as=kept)
        notes = []
        if self._journal.has_nothing_to_resume:
            notes.append(f"nothing to resume: {path} was of a finished session with other settings; all cases run")
        elif resume:
            self._journal.forget_failures()
            count = sum(self.has_finished(item.nodeid) for item in items)
            notes.append(f"resuming {path}, which has {count} of {len(items)} cases")
        if num_kept := self._journal.num_kept:
            notes.append(
                f"the journal of an unfinished session (finished cases: {num_kept}) is now {self._journal.kept}; "
                "--gpt-resume would have continued it"
            )
        return notes

    def has_finished(self, nodeid: str) -> bool:
        return self._journal is not None and redact(nodeid) in self._journal.finished

    def replay(self, item: pytest.Item, spec: RunSpec | None) -> Sequence[RunResult]:
        """The launches of an earlier session's case; none if the case is new or their spec differs."""
        if not self.has_finished(item.nodeid):
            return ()
        assert self._journal is not None
        results = self._journal.finished[redact(item.nodeid)].results
        if not results:  # it failed, and another plugin runs it again
            return ()
        if spec is not None and any(not _is_same_work(result.spec, spec) for result in results):
            return ()
        self._replayed.add(item.nodeid)
        self.record.resumed.append(item.name)
        return results

    def add_case(self, item: pytest.Item, group: str | None, results: Sequence[RunResult]) -> CaseSummary:
        """Record a case's launches; they count once its test has passed."""
        summary = redact_tree(summarise(results))
        params = {"strategy": summary.strategy, "num_gpus": summary.num_gpus}
        if "gpt_batch_size" in getattr(getattr(item, "callspec", None), "params", {}):
            params["gpt_batch_size"] = summary.batch_size
        self.record.add(item.nodeid, item.name, group, params, summary)
        self._measured[item.nodeid] = results
        return summary

    @pytest.hookimpl
    def pytest_runtest_logstart(self) -> None:
        install_interrupt_handler()  # for this test, even if the last one changed it

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Record a case that was skipped or failed; it leaves no timing, even if it fails after it was timed."""
        report = yield
        if is_case(item) and (report.outcome != "passed" or report.when == "call"):
            self._reached.add(item.nodeid)
            finished = self._entry_of_passed(item) if report.outcome == "passed" else self._discard(item, report)
            if finished is not None:
                self._add_to_journal(item.session, finished)
        return report

    def _entry_of_passed(self, item: pytest.Item) -> Finished | None:
        """The journal's entry for a case that passed; None if it was not timed, or was replayed."""
        results = self._measured.get(item.nodeid, ())
        if not results or not results[0].figures.round_seconds or item.nodeid in self._replayed:
            return None
        return Finished(case=item.nodeid, outcome="passed", results=tuple(results))

    def _discard(self, item: pytest.Item, report: pytest.TestReport) -> Finished | None:
        """Remove a case from the record; return the journal's entry if it failed, None if it was skipped."""
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self.record.discard(item.nodeid)
        self.record.add_not_run(item.nodeid, item.name, report.outcome, redact(reason.removeprefix("Skipped: ")))
        if "benchmark" in getattr(item, "funcargs", {}):
            item.funcargs["benchmark"].has_error = True  # type: ignore[attr-defined]
        return Finished(case=item.nodeid, outcome="failed", reason=reason) if report.outcome == "failed" else None

    def _add_to_journal(self, session: pytest.Session, finished: Finished) -> None:
        """Write an entry; if that fails, no further case may start, because its result could be lost."""
        if self._journal is None:
            return
        try:
            self._journal.add(finished)
        except JournalError as error:
            self._journal.close()
            self._journal = None
            session.shouldfail = f"gpt_parallel: {error}; stopped: later results could not be saved"

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        ignore_interrupts_until_exit()
        self._ended_by = str(excinfo.value) or "interrupted"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        """Write the report before pytest-benchmark writes its own file, which may fail."""
        if self._is_resumed:
            self._note_replayed()
        self._note_missing(session)
        if not self._write_report() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        try:
            yield
        except OSError as error:
            raise pytest.exit.Exception(f"a file of this session was not written: {error}", returncode=1) from error
        finally:
            if not self._is_printed:
                self._print_summary(session.config.pluginmanager.get_plugin("terminalreporter"))

    def _note_replayed(self) -> None:
        counts = f"{len(self._replayed)} of {len(self._expected)}"
        self._notes.append(f"{counts} cases come from an earlier session and were not launched again")

    def _note_missing(self, session: pytest.Session) -> None:
        ended_by = self._ended_by or str(session.shouldfail or session.shouldstop or "it ended early")
        for item in self._expected:
            if item.nodeid not in self._reached:
                self.record.discard(item.nodeid)
                self.record.add_not_reached(item.nodeid, item.name, ended_by.replace("stopping", "stopped", 1))

    @printed_warnings()
    def _write_report(self) -> bool:
        """Write the report, if any case was timed or failed; False if it could not be written."""
        if self._directory is None:
            return True
        if not (self.record.is_timed or self.record.has_failures):
            if self._journal is not None and (self._directory / FILE_NAME).exists():
                self._notes.append(f"no case finished; the report in {self._directory} is from an earlier session")
            self._close_journal(is_complete=False)
            return True
        try:
            self.record.write_report(self._directory)
        except (OSError, ReportError) as error:
            self._notes.append(f"REPORT NOT WRITTEN to {self._directory}: {error}")
            self._close_journal(is_complete=False)
            return False
        self._notes.append(f"report: {self._directory / 'report.html'} (also .md, .txt, .csv, charts and {FILE_NAME})")
        self._close_journal(is_complete=self.record.incomplete is None)
        return True

    def _close_journal(self, is_complete: bool) -> None:
        if self._journal is None:
            return
        try:
            if is_complete:
                self._journal.end()
        except JournalError as error:
            self._notes.append(str(error))
        finally:
            self._journal.close()
            self._journal = None

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        self._print_summary(terminalreporter)

    def _print_summary(self, reporter: pytest.TerminalReporter | None) -> None:
        self._is_printed = True
        summaries, sentence = self.record.summaries, self.record.incompleteness
        if reporter is None or not (summaries or sentence or self._notes):
            return
        reporter.section("gpt_parallel")
        if summaries:
            reporter.write_line(render_table(summaries) + render_breakdown(summaries))
            if profile := self._settings.profile:
                reporter.write_line(f"profiles: a directory for each case in {profile}")
        for line in [*([sentence] if sentence else []), *self._notes]:
            reporter.write_line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, object]) -> None:
        """Add to pytest-benchmark's own files which cases left no timing."""
        output_json["gpt_parallel"] = self.record.ours


def weights_notes(suite: Suite) -> list[str]:
    """A note if weights are random by default, not by choice. Raises SpecError for a model that is not available."""
    if suite.settings.weights != "auto" or suite.model.weights != "random":
        return []
    name, origin = suite.model.name, f"weights: {suite.model.weights_origin}"
    if shipped_weights(name):
        return [f"{origin}; --gpt-weights checkpoint takes the trained ones of {name}"]
    if not has_published_weights(name):
        return [f"{origin}, because {name} has no trained ones"]
    return [f"{origin}, because those of {name} are not on this disk; --gpt-weights checkpoint downloads them"]


def _is_same_work(found: RunSpec, spec: RunSpec) -> bool:
    return found.model_dump(exclude=_FREE) == redact_tree(spec).model_dump(exclude=_FREE)
