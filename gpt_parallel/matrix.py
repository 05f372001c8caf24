"""Strategies × device counts × batch sizes, one cell after the other, without pytest and safe from interruption.

A cell that fails does not end the matrix: its line in the journal says why, and the table has the others.
"""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gpt_parallel.case import summarise
from gpt_parallel.environment import describe_machine
from gpt_parallel.journal import Finished, Header, Journal
from gpt_parallel.launch.devices import device_counts, why_skip
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.session import SessionRecord
from gpt_parallel.settings import Settings
from gpt_parallel.spec import SpecError
from gpt_parallel.strategies import cases
from gpt_parallel.suite import CUSTOM, Suite, VerificationError, custom_mesh

# Settings that choose cells, or do not change what is measured: a journal may be resumed with others.
_FREE = {"strategy", "num_gpus", "batch_size", "timeout_s", "offline"}


class Cell(NamedTuple):
    strategy: str
    num_gpus: int
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.num_gpus}gpu-batch{self.batch_size}"


class Progress(Protocol):
    """Who is told how far the matrix is."""

    def started(self, number: int, cell: Cell) -> None: ...

    def phase(self, rank: int, phase: str) -> None: ...

    def finished(self, number: int, finished: Finished) -> None: ...


def make_cells(settings: Settings, batch_sizes: Sequence[int]) -> list[Cell]:
    """The cells in the order they run. Raises SpecError for a strategy or mesh that cannot be."""
    if settings.has_custom_mesh:
        counts = settings.device_counts or (None,)
        rows = [(CUSTOM, custom_mesh(settings, count).size) for count in counts]
    else:
        rows = cases(device_counts(settings), settings.strategies)
    if not rows:
        raise SpecError(f"no strategy asked for exists on {settings.num_gpus} device(s)")
    return [Cell(*row, batch_size) for batch_size in batch_sizes for row in rows]


def make_header(settings: Settings) -> Header:
    fixed = settings.model_dump(mode="json", exclude=_FREE)
    if settings.prompts not in ("builtin", "random"):
        try:
            fixed["prompts_sha256"] = hashlib.sha256(Path(settings.prompts).read_bytes()).hexdigest()
        except OSError as error:
            raise SpecError(f"prompts file {settings.prompts}: cannot be read ({error.strerror})") from error
    return Header(settings=fixed, machine=describe_machine())


class Matrix:
    """All cells of a set of settings; model, prompts and references are shared by cells of one batch size."""

    def __init__(self, settings: Settings, cells: Sequence[Cell], progress: Progress) -> None:
        self._settings, self._cells, self._progress = settings, cells, progress
        self._suites: dict[int, Suite] = {}

    def check(self) -> None:
        """Before any rank starts: raise SpecError if not one cell can be run because of what was asked for."""
        problems: dict[str, None] = {}
        for cell in self._cells:
            try:
                if not why_skip(self._settings, cell.num_gpus):
                    self._suite(cell).spec(cell.strategy, cell.num_gpus)
                return
            except SpecError as error:
                problems.update(dict.fromkeys(error.problems))
        raise SpecError(list(problems))

    def run(self, journal: Journal) -> SessionRecord:
        """Run what the journal does not have yet; the record has all cells, in their order."""
        for number, cell in enumerate(self._cells, start=1):
            if cell.name not in journal.finished:
                self._progress.started(number, cell)
                finished = self._finish(cell)
                journal.add(finished)
                self._progress.finished(number, finished)
        journal.end()
        return self.record(journal)

    def record(self, journal: Journal) -> SessionRecord:
        record = SessionRecord()
        for cell in self._cells:
            finished = journal.finished[cell.name]
            if finished.summary is not None:
                record.add(cell.name, cell.name, None, cell._asdict(), finished.summary)
            else:
                outcome = "skipped" if finished.outcome == "skipped" else "failed"
                record.add_not_run(cell.name, outcome, finished.reason)
        return record

    def _suite(self, cell: Cell) -> Suite:
        if cell.batch_size not in self._suites:
            settings = self._settings.model_copy(update={"batch_size": cell.batch_size})
            self._suites[cell.batch_size] = Suite(settings, self._progress.phase)
        return self._suites[cell.batch_size]

    def _finish(self, cell: Cell) -> Finished:
        begin = time.monotonic()
        if reason := why_skip(self._settings, cell.num_gpus):
            return Finished(cell=cell.name, outcome="skipped", reason=reason)
        suite = self._suite(cell)
        try:
            spec = suite.spec(cell.strategy, cell.num_gpus)
        except SpecError as error:
            return Finished(cell=cell.name, outcome="skipped", reason="; ".join(error.problems))
        try:
            summary = summarise([suite.run(spec) for _ in range(self._settings.launches)])
        except (LaunchError, VerificationError) as error:
            outcome = "oom" if isinstance(error, LaunchError) and error.out_of_memory else "failed"
            return Finished(cell=cell.name, outcome=outcome, reason=str(error), seconds=time.monotonic() - begin)
        return Finished(cell=cell.name, outcome="passed", seconds=time.monotonic() - begin, summary=summary)
