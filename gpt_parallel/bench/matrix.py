"""Strategies × device counts × batch sizes, one cell after the other, without pytest and safe from interruption.

A cell that fails does not end the matrix: its line in the journal says why, and the table has the others.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench.journal import Finished, Journal
from gpt_parallel.bench.session_record import SessionRecord
from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.bench.verifier import VerificationError
from gpt_parallel.inputs.execution import CUSTOM, custom_mesh, device_counts, reason_to_skip
from gpt_parallel.inputs.settings import Settings
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.launch.gpu_memory import GpuMemoryError
from gpt_parallel.layout.strategies import cases
from gpt_parallel.schema.fault import FaultSpec


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


def make_record(cells: Sequence[Cell], journal: Journal, ended_by: str = "") -> SessionRecord:
    """All cells in their order; those that are not in the journal were not reached, because of `ended_by`."""
    record = SessionRecord()
    for cell in cells:
        finished = journal.finished.get(cell.name)
        if finished is None:
            record.add_not_reached(cell.name, ended_by)
        elif finished.summary is not None:
            record.add(cell.name, cell.name, None, cell._asdict(), finished.summary)
        else:
            outcome = "skipped" if finished.outcome == "skipped" else "failed"
            record.add_not_run(cell.name, outcome, finished.reason)
    return record


class Matrix:
    """All cells of a set of settings; model, prompts and references are shared by cells of one batch size."""

    def __init__(
        self, settings: Settings, cells: Sequence[Cell], progress: Progress, fault: FaultSpec | None = None
    ) -> None:
        self._settings, self._cells, self._progress, self._fault = settings, cells, progress, fault
        self._suites: dict[int, Suite] = {}

    def check(self) -> None:
        """Before any rank starts: raise SpecError if not one cell can be run because of what was asked for."""
        problems: dict[str, None] = {}
        for cell in self._cells:
            try:
                if not reason_to_skip(self._settings, cell.num_gpus):
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
                finished = self._finish(cell).model_copy(update={"fault": str(self._fault) if self._fault else None})
                journal.add(finished)
                self._progress.finished(number, finished)
        journal.end()
        return make_record(self._cells, journal)

    def _suite(self, cell: Cell) -> Suite:
        if cell.batch_size not in self._suites:
            settings = self._settings.model_copy(update={"batch_size": cell.batch_size})
            self._suites[cell.batch_size] = Suite(settings, self._progress.phase, self._fault)
        return self._suites[cell.batch_size]

    def _finish(self, cell: Cell) -> Finished:
        begin = time.monotonic()
        if reason := reason_to_skip(self._settings, cell.num_gpus):
            return Finished(cell=cell.name, outcome="skipped", reason=reason)
        suite = self._suite(cell)
        try:
            spec = suite.spec(cell.strategy, cell.num_gpus)
        except SpecError as error:
            return Finished(cell=cell.name, outcome="skipped", reason="; ".join(error.problems))
        try:
            summary = summarise([suite.run(spec) for _ in range(self._settings.launches)])
        except (SpecError, LaunchError, VerificationError) as error:  # SpecError: its devices are busy, for one
            has_no_room = isinstance(error, GpuMemoryError) or (isinstance(error, LaunchError) and error.out_of_memory)
            outcome = "oom" if has_no_room else "failed"
            return Finished(cell=cell.name, outcome=outcome, reason=str(error), seconds=time.monotonic() - begin)
        return Finished(cell=cell.name, outcome="passed", seconds=time.monotonic() - begin, summary=summary)
