"""The fixtures of a benchmark case: `gpt_suite`, `gpt_record` and `gpt_case`."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

from gpt_parallel.base.warning_filters import printed_warnings
from gpt_parallel.pytest_plugin.state import (
    keeper_of,
    progress_of,
    refuse_foreign_fixture,
    refuse_parallel_timing,
    suite_of,
)
from gpt_parallel.pytest_plugin.timing import replay_rounds

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from gpt_parallel.bench.suite import Suite
    from gpt_parallel.schema.result import RunResult
    from gpt_parallel.schema.run import RunSpec


@pytest.fixture
def gpt_suite(request: pytest.FixtureRequest) -> "Suite":
    """The session's `Suite`: its settings, model, workload and references."""
    return suite_of(request.config)


@pytest.fixture
def gpt_record(request: pytest.FixtureRequest, benchmark: "BenchmarkFixture") -> "Callable[..., Sequence[RunResult]]":
    """A function that records a case: `record(make_launches, num_rounds, spec=None)` calls `make_launches` once.

    The timed rounds become pytest-benchmark's, the figures its `extra_info`; the case gets a row in table and report.
    With `--gpt-resume` an earlier session's launches are used instead, unless they have another spec.
    """

    def record(
        make_launches: "Callable[[], Sequence[RunResult]]", num_rounds: int, spec: "RunSpec | None" = None
    ) -> "Sequence[RunResult]":
        refuse_foreign_fixture(benchmark)
        keeper = keeper_of(request.config)
        try:
            if kept := keeper.replay(request.node, spec):
                num_rounds = sum(len(result.figures.round_seconds) for result in kept)
                results = replay_rounds(benchmark, lambda: kept, num_rounds)
            else:
                results = replay_rounds(benchmark, make_launches, num_rounds)
            summary = keeper.add_case(request.node, benchmark.group, results)
            benchmark.extra_info.update(summary.model_dump(mode="json"))
        except BaseException:
            benchmark.has_error = True
            raise
        return results

    return record


@pytest.fixture
def gpt_batch_size() -> int | None:
    """A case's batch size; None for that of the settings. `--gpt-batch-sizes` parametrises it."""
    return None


@pytest.fixture
def gpt_case(
    request: pytest.FixtureRequest,
    gpt_batch_size: int | None,
    benchmark: "BenchmarkFixture",
    gpt_suite: "Suite",
    gpt_record: "Callable[..., Sequence[RunResult]]",
) -> "Callable[[str, int], RunResult]":
    """A function that runs, verifies and times a case, given a strategy's name and a number of devices.

    A case that fails or does not match its reference leaves no timing. With `--benchmark-disable` it is only verified.
    """
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.bench.verifier import VerificationError
    from gpt_parallel.launch.failure import LaunchError

    @printed_warnings()
    def run(strategy: str, num_gpus: int) -> "RunResult":
        refuse_parallel_timing(request.config)
        refuse_foreign_fixture(benchmark)
        num_launches = gpt_suite.settings.launches if benchmark.enabled else 1
        progress = progress_of(request.config)
        try:
            spec = gpt_suite.spec(strategy, num_gpus, gpt_batch_size)
            progress.start(spec)
            results = gpt_record(
                lambda: [gpt_suite.run(spec, timed=benchmark.enabled) for _ in range(num_launches)],
                num_launches * spec.execution.rounds,
                spec,
            )
        except (SpecError, LaunchError, VerificationError) as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        finally:
            progress.end()
        return results[-1]

    return run
