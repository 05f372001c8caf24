"""The pytest side: options, cases, the fixture that runs one, and the table at the end.

Loaded at every pytest start, so it imports nothing heavy at its top, and never torch.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpt_parallel.pytest_plugin.items import is_case
from gpt_parallel.pytest_plugin.timing import measured_clock, play

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from gpt_parallel.bench.progress import CaseProgress
    from gpt_parallel.bench.suite import Suite
    from gpt_parallel.inputs.settings import Settings
    from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper
    from gpt_parallel.schema.result import RunResult
    from gpt_parallel.schema.run import RunSpec

_SETTINGS: "pytest.StashKey[Settings]" = pytest.StashKey()
_SUITE: "pytest.StashKey[Suite]" = pytest.StashKey()
_KEEPER: "pytest.StashKey[SessionKeeper]" = pytest.StashKey()
_PROGRESS: "pytest.StashKey[CaseProgress]" = pytest.StashKey()
_NOTES: "pytest.StashKey[list[str]]" = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    from gpt_parallel.pytest_plugin.options import add_options

    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("gpt_print_config"):
        return None
    from gpt_parallel.inputs.yaml_file import to_yaml

    print(to_yaml(_settings(config)), end="")
    return 0


def pytest_configure(config: pytest.Config) -> None:
    from gpt_parallel.pytest_plugin.options import is_asked, refuse_contradictions

    config.addinivalue_line("markers", "gpus(n): the number of devices a generation case runs on")
    if not _has_benchmark(config):  # cases cannot run, and are to say so instead of stumbling over their marks
        config.addinivalue_line("markers", "benchmark: of pytest-benchmark, which is not loaded")
    refuse_contradictions(config)
    if is_asked(config):
        _settings(config)  # a wrong option is a usage error now, not a failed case later


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"gpt_parallel: {note}" for note in config.stash.get(_NOTES, [])]


def _settings(config: pytest.Config) -> "Settings":
    if _SETTINGS not in config.stash:
        from gpt_parallel.base.errors import SpecError
        from gpt_parallel.inputs.execution import device_counts, resolve_device
        from gpt_parallel.pytest_plugin.options import choose

        try:
            settings, notes = choose(config)
            resolve_device(settings)
            counts = device_counts(settings)
            if settings.launcher and not settings.device_counts and len(counts) == 1:
                notes.append(f"the launcher starts {counts[0]} ranks: cases are made for {counts[0]} devices only")
            if settings.has_custom_mesh:
                from gpt_parallel.pytest_plugin.cases import custom_cases

                custom_cases(settings)
        except SpecError as error:
            raise pytest.UsageError(_usage(error.problems)) from error
        config.stash[_SETTINGS], config.stash[_NOTES] = settings, notes
    return config.stash[_SETTINGS]


def _usage(problems: list[str]) -> str:
    return "gpt_parallel: " + "\n  ".join(problems)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that use `gpt_case`, `strategy` and `num_gpus` the strategy × device count cases."""
    if not {"gpt_case", "strategy", "num_gpus"} <= set(metafunc.fixturenames):
        return
    if any("num_gpus" in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize")):
        return
    from gpt_parallel.pytest_plugin.cases import make_parameters

    metafunc.parametrize(("strategy", "num_gpus"), make_parameters(_settings(metafunc.config)))


def _check_strategies(settings: "Settings") -> None:
    """Raise UsageError for strategies that do not exist, now that every conftest.py has registered its own."""
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.layout.strategies import check_known

    try:
        for name in settings.strategies:
            check_known(name)
    except SpecError as error:
        raise pytest.UsageError(_usage(error.problems)) from error


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have pytest-benchmark time cases by the ranks' clock; the nearest mark is the one it reads."""
    if _SETTINGS in config.stash:
        _check_strategies(config.stash[_SETTINGS])
    for item in items:
        if is_case(item):
            if not _has_benchmark(config):
                raise pytest.UsageError(
                    f"gpt_parallel: {item.nodeid} needs pytest-benchmark, which is switched off or not installed "
                    "(leave out -p no:benchmark)"
                )
            mark = item.get_closest_marker("benchmark")
            options = {**(mark.kwargs if mark else {}), "timer": measured_clock}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


def _has_benchmark(config: pytest.Config) -> bool:
    return config.getoption("benchmark_disable", None) is not None


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before any rank starts: everything that cannot be run is one usage error."""
    config = session.config
    failed = session.testsfailed and not config.option.continue_on_collection_errors
    cases = [item for item in session.items if is_case(item)]
    if config.option.collectonly or failed or not cases or _is_xdist_worker(config):
        return
    _check_specs(session)
    _begin(config, [item for item in cases if not item.get_closest_marker("skip")])


def _check_specs(session: pytest.Session) -> None:
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.launch import fork_server

    problems: dict[str, None] = {}
    for item in session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "gpt_case" not in getattr(item, "fixturenames", ()) or item.get_closest_marker("skip"):
            continue
        if not {"strategy", "num_gpus"} <= set(parameters):
            continue
        if not session.config.getoption("gpt_resume"):  # where all is replayed none is needed
            fork_server.warm_up()
        try:
            _suite(session.config).spec(parameters["strategy"], parameters["num_gpus"])
        except SpecError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise pytest.UsageError(_usage(list(problems)))


def _begin(config: pytest.Config, cases: list[pytest.Item]) -> None:
    """Have the session keep what its cases leave, and say what an earlier one has left."""
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.base.signals import heed_one_interrupt
    from gpt_parallel.launch import fork_server
    from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper, weights_notes

    keeper = SessionKeeper(_settings(config), _report_directory(config))
    try:
        notes = weights_notes(_suite(config)) + keeper.begin(cases, resume=config.getoption("gpt_resume"))
    except SpecError as error:
        raise pytest.UsageError(_usage(error.problems)) from error
    config.stash[_KEEPER] = keeper
    config.pluginmanager.register(keeper)
    if not all(keeper.has(case.nodeid) for case in cases):
        fork_server.warm_up()
    heed_one_interrupt()
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        for note in notes:
            reporter.write_line(f"gpt_parallel: {note}")


def _report_directory(config: pytest.Config) -> Path | None:
    """Where the session's files go; None where it is to leave none, or times nothing."""
    is_disabled = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    if config.getoption("gpt_no_report") or is_disabled or config.getoption("benchmark_skip"):
        return None
    given = config.getoption("gpt_report")
    return config.invocation_params.dir / given if given else config.rootpath / "reports" / "latest"


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SUITE in config.stash:
        from gpt_parallel.base.signals import heed_interrupts
        from gpt_parallel.launch import fork_server

        fork_server.stop()
        heed_interrupts()


def _suite(config: pytest.Config) -> "Suite":
    if _SUITE not in config.stash:
        from gpt_parallel.bench.suite import Suite
        from gpt_parallel.schema.run import FaultSpec

        text = config.getoption("gpt_inject_fault")
        config.stash[_SUITE] = Suite(_settings(config), _progress(config), FaultSpec.parse(text) if text else None)
    return config.stash[_SUITE]


def _progress(config: pytest.Config) -> "CaseProgress":
    if _PROGRESS not in config.stash:
        from gpt_parallel.bench.progress import pytest_progress

        config.stash[_PROGRESS] = pytest_progress(config)
    return config.stash[_PROGRESS]


def _keeper(config: pytest.Config) -> "SessionKeeper":
    """The session's; where a fixture was asked for by name in a test's body, one without files."""
    if _KEEPER not in config.stash:
        from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper

        config.stash[_KEEPER] = SessionKeeper(_settings(config), None)
        config.pluginmanager.register(config.stash[_KEEPER])
    return config.stash[_KEEPER]


def _is_xdist_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def refuse_parallel_timing(config: pytest.Config) -> None:
    """Raise UsageError where pytest-xdist would run timed cases side by side; call it from a conftest.py.

    pytest-benchmark would switch itself off and pass, without a number.
    """
    # pytest-benchmark goes by the variable too, which processes started by a worker inherit.
    parallel = config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ
    if parallel and not config.getoption("benchmark_disable", False) and not config.option.collectonly:
        raise pytest.UsageError(
            "gpt_parallel: cases cannot be timed side by side with pytest-xdist (-n); "
            "run them without -n, or add --benchmark-disable to verify only"
        )


@pytest.fixture
def gpt_suite(request: pytest.FixtureRequest) -> "Suite":
    """The session's `Suite`: its settings, model, workload and references."""
    return _suite(request.config)


@pytest.fixture
def gpt_record(request: pytest.FixtureRequest, benchmark: "BenchmarkFixture") -> "Callable[..., Sequence[RunResult]]":
    """Call it with a function that makes a case's launches, the number of their timed rounds, and perhaps their spec.

    The rounds become pytest-benchmark's, the figures its `extra_info`; the case gets its row in table and report. With
    `--gpt-resume` the launches may be an earlier session's; those of another spec are not.
    """

    def record(
        make_launches: "Callable[[], Sequence[RunResult]]", num_rounds: int, spec: "RunSpec | None" = None
    ) -> "Sequence[RunResult]":
        keeper = _keeper(request.config)
        try:
            if kept := keeper.replay(request.node, spec):
                num_rounds = sum(len(result.figures.round_seconds) for result in kept)
                results = play(benchmark, lambda: kept, num_rounds)
            else:
                results = play(benchmark, make_launches, num_rounds)
            summary = keeper.measured(request.node, benchmark.group, results)
            benchmark.extra_info.update(summary.model_dump(mode="json"))
        except BaseException:
            benchmark.has_error = True
            raise
        return results

    return record


@pytest.fixture
def gpt_case(
    request: pytest.FixtureRequest,
    benchmark: "BenchmarkFixture",
    gpt_suite: "Suite",
    gpt_record: "Callable[..., Sequence[RunResult]]",
) -> "Callable[[str, int], RunResult]":
    """Call it with a strategy's name and a number of devices to run, verify and time that case.

    A case that fails or does not match its reference leaves no timing. With `--benchmark-disable` the case is verified
    only.
    """
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.bench.verifier import VerificationError
    from gpt_parallel.launch.failure import LaunchError

    def run(strategy: str, num_gpus: int) -> "RunResult":
        refuse_parallel_timing(request.config)
        num_launches = gpt_suite.settings.launches if benchmark.enabled else 1
        progress = _progress(request.config)
        try:
            spec = gpt_suite.spec(strategy, num_gpus)
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
