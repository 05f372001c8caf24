"""Makes pytest-benchmark time rounds that were measured elsewhere: in the ranks."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from gpt_parallel.schema.result import RunResult

_measured_s = 0.0


def measured_clock() -> float:
    """The timer of generation cases: the seconds that ranks have measured so far. It advances by whole rounds."""
    return _measured_s


def _advance_clock(seconds: float) -> None:
    global _measured_s
    _measured_s += seconds


def replay_rounds(
    benchmark: "BenchmarkFixture", make_launches: "Callable[[], Sequence[RunResult]]", num_rounds: int
) -> "Sequence[RunResult]":
    """Make all launches inside pytest-benchmark's first round, then give it one measured round at a time."""
    results: list[RunResult] = []
    replayed: Iterator[float] = iter(())

    def reset_clock() -> None:
        _advance_clock(-_measured_s)  # from zero, the reading is exactly the round's seconds

    def replay_round() -> None:
        nonlocal replayed
        if not results:
            results.extend(make_launches())
            replayed = iter([seconds for result in results for seconds in result.figures.round_seconds])
        _advance_clock(next(replayed, 0.0))

    benchmark.pedantic(replay_round, setup=reset_clock, rounds=num_rounds)
    return results
