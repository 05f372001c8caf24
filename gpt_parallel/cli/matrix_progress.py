"""How far a matrix is: a live line on a terminal, and one line for each finished cell there and in a log."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from typing_extensions import Self

from gpt_parallel.base.escaping import plain
from gpt_parallel.bench.journal import Finished
from gpt_parallel.bench.matrix import Cell


class MatrixProgress:
    """Enter it while the matrix runs. `num_to_run` of `num_cells` cells are not finished yet."""

    def __init__(
        self, console: Console, num_cells: int, num_to_run: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console, self._num_cells, self._num_to_run = console, num_cells, num_to_run
        self._clock, self._begin = clock, clock()
        self._num_done = 0
        self._title = ""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        self._live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._live.add_task("starting", total=num_to_run, left="")

    def started(self, number: int, cell: Cell) -> None:
        self._title = f"[{number}/{self._num_cells}] {cell.name}"
        self._live.update(self._task, description=self._title)

    def phase(self, rank: int, phase: str) -> None:
        if rank == 0:
            self._live.update(self._task, description=f"{self._title}: {phase}")

    def finished(self, number: int, finished: Finished) -> None:
        self._num_done += 1
        left = self._left()
        times = f"elapsed {clock_time(self._clock() - self._begin)}{', ' if left else ''}{left}"
        self._live.update(self._task, completed=self._num_done, left=left)
        self._console.print(f"[{number}/{self._num_cells}] {finished.cell}: {describe(finished)} ({times})")

    def _left(self) -> str:
        """From the mean time of the cells so far."""
        remaining = self._num_to_run - self._num_done
        mean = (self._clock() - self._begin) / self._num_done
        return f"about {clock_time(mean * remaining)} left" if remaining else ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe(finished: Finished) -> str:
    """A cell's outcome in one line."""
    summary = finished.summary
    if summary is not None:
        speed = f"{summary.throughput_tok_s:,.1f} tokens/s, " if summary.throughput_tok_s else ""
        verdict = "not verified" if summary.verified == "skipped" else summary.verified
        return speed + verdict + ", not repeatable" * (summary.repeatable is False)
    words = {"oom": "OUT OF MEMORY", "failed": "FAILED", "skipped": "skipped"}
    return plain(f"{words[finished.outcome]}, {finished.reason.strip().splitlines()[0]}")
