"""The pytest side: options, cases, the fixture that runs one, and the table at the end.

Loaded at every pytest start, so it imports nothing heavy at its top, and never torch.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from gpt_parallel.progress import CaseProgress
    from gpt_parallel.result import RunResult
    from gpt_parallel.session import SessionRecord
    from gpt_parallel.settings import Settings
    from gpt_parallel.suite import Suite

_SETTINGS: "pytest.StashKey[Settings]" = pytest.StashKey()
_SUITE: "pytest.StashKey[Suite]" = pytest.StashKey()
_RECORD: "pytest.StashKey[SessionRecord]" = pytest.StashKey()
_PROGRESS: "pytest.StashKey[CaseProgress]" = pytest.StashKey()
_NOTES: "pytest.StashKey[list[str]]" = pytest.StashKey()

_measured_s = 0.0


def measured_clock() -> float:
    """The timer of generation cases: seconds that ranks have measured so far. It stands still in between."""
    return _measured_s


def _advance_clock(seconds: float) -> None:
    global _measured_s
    _measured_s += seconds


def pytest_addoption(parser: pytest.Parser) -> None:
    from gpt_parallel.pytest_options import add_options

    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("gpt_print_config"):
        return None
    from gpt_parallel.config_file import to_yaml

    print(to_yaml(_settings(config)), end="")
    return 0


def pytest_configure(config: pytest.Config) -> None:
    from gpt_parallel.pytest_options import is_asked

    config.addinivalue_line("markers", "gpus(n): the number of devices a generation case runs on")
    if is_asked(config):
        _settings(config)  # a wrong option is a usage error now, not a failed case later


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"gpt_parallel: {note}" for note in config.stash.get(_NOTES, [])]


def _settings(config: pytest.Config) -> "Settings":
    if _SETTINGS not in config.stash:
        from gpt_parallel.launch.devices import resolve_device
        from gpt_parallel.pytest_options import choose
        from gpt_parallel.spec import SpecError

        try:
            settings, config.stash[_NOTES] = choose(config)
            resolve_device(settings)
            if settings.has_custom_mesh:
                _custom_cases(settings)
        except SpecError as error:
            raise pytest.UsageError(_usage(error.problems)) from error
        config.stash[_SETTINGS] = settings
    return config.stash[_SETTINGS]


def _usage(problems: list[str]) -> str:
    return "gpt_parallel: " + "\n  ".join(problems)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give tests that use `gpt_case`, `strategy` and `num_gpus` the strategy × device count cases."""
    if not {"gpt_case", "strategy", "num_gpus"} <= set(metafunc.fixturenames):
        return
    if any("num_gpus" in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize")):
        return
    from gpt_parallel.launch.devices import device_counts, why_skip
    from gpt_parallel.strategies import STRATEGIES, cases

    settings = _settings(metafunc.config)
    asked = [name for name in settings.strategies if name in STRATEGIES]  # of others _check_strategies complains
    rows = _custom_cases(settings) if settings.has_custom_mesh else cases(device_counts(settings), tuple(asked))
    parameters = []
    for strategy, num_gpus in rows:
        marks = [pytest.mark.gpus(n=num_gpus)]
        if reason := why_skip(settings, num_gpus):
            marks.append(pytest.mark.skip(reason=reason))
        parameters.append(pytest.param(strategy, num_gpus, id=f"{strategy}-{num_gpus}gpu", marks=marks))
    metafunc.parametrize(("strategy", "num_gpus"), parameters)


def _custom_cases(settings: "Settings") -> list[tuple[str, int]]:
    from gpt_parallel.launch.devices import device_counts
    from gpt_parallel.suite import CUSTOM, custom_mesh

    counts = device_counts(settings) if settings.num_gpus else [None]
    return [(CUSTOM, custom_mesh(settings, count).size) for count in counts]


def _check_strategies(settings: "Settings") -> None:
    """Raise UsageError for strategies that do not exist, now that every conftest.py has registered its own."""
    from gpt_parallel.spec import SpecError
    from gpt_parallel.strategies import check_known

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
        if "gpt_record" in getattr(item, "fixturenames", ()):
            mark = item.get_closest_marker("benchmark")
            options = {**(mark.kwargs if mark else {}), "timer": measured_clock}
            item.add_marker(pytest.mark.benchmark(**options), append=False)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Before any rank starts: everything that cannot be run is one usage error."""
    from gpt_parallel.launch import fork_server
    from gpt_parallel.spec import SpecError

    if session.config.option.collectonly or _is_xdist_worker(session.config):
        return
    problems: dict[str, None] = {}
    for item in session.items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if "gpt_case" not in getattr(item, "fixturenames", ()) or item.get_closest_marker("skip"):
            continue
        if not {"strategy", "num_gpus"} <= set(parameters):
            continue
        fork_server.warm_up()
        try:
            _suite(session.config).spec(parameters["strategy"], parameters["num_gpus"])
        except SpecError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise pytest.UsageError(_usage(list(problems)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SUITE in config.stash:
        from gpt_parallel.launch import fork_server

        fork_server.stop()


def _suite(config: pytest.Config) -> "Suite":
    if _SUITE not in config.stash:
        from gpt_parallel.suite import Suite

        config.stash[_SUITE] = Suite(_settings(config), _progress(config))
    return config.stash[_SUITE]


def _progress(config: pytest.Config) -> "CaseProgress":
    if _PROGRESS not in config.stash:
        from gpt_parallel.progress import CaseProgress, pytest_progress

        config.stash[_PROGRESS] = CaseProgress(pytest_progress(config))
    return config.stash[_PROGRESS]


def _record(config: pytest.Config) -> "SessionRecord":
    if _RECORD not in config.stash:
        from gpt_parallel.session import SessionRecord

        config.stash[_RECORD] = SessionRecord()
    return config.stash[_RECORD]


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
def gpt_record(
    request: pytest.FixtureRequest, benchmark: "BenchmarkFixture"
) -> "Callable[[Callable[[], Sequence[RunResult]], int], Sequence[RunResult]]":
    """Call it with a function that makes a case's launches, and the number of their timed rounds.

    The rounds become pytest-benchmark's, the figures its `extra_info`; the case gets its row in table and report.
    """
    from gpt_parallel.case import summarise

    def record(make_launches: "Callable[[], Sequence[RunResult]]", num_rounds: int) -> "Sequence[RunResult]":
        results = _play(benchmark, make_launches, num_rounds)
        summary = summarise(results)
        benchmark.extra_info.update(summary.model_dump(mode="json"))
        params = {"strategy": summary.strategy, "num_gpus": summary.num_gpus}
        _record(request.config).add(request.node.nodeid, request.node.name, benchmark.group, params, summary)
        return results

    return record


def _play(
    benchmark: "BenchmarkFixture", make_launches: "Callable[[], Sequence[RunResult]]", num_rounds: int
) -> "Sequence[RunResult]":
    """Make all launches inside pytest-benchmark's first round, then give it one measured round at a time."""
    results: list[RunResult] = []
    replayed: Iterator[float] = iter(())

    def play_round() -> None:
        nonlocal replayed
        if not results:
            results.extend(make_launches())
            replayed = iter([seconds for result in results for seconds in result.figures.round_seconds])
        _advance_clock(next(replayed, 0.0))

    benchmark.pedantic(play_round, rounds=num_rounds)
    return results


@pytest.fixture
def gpt_case(
    request: pytest.FixtureRequest,
    benchmark: "BenchmarkFixture",
    gpt_suite: "Suite",
    gpt_record: "Callable[[Callable[[], Sequence[RunResult]], int], Sequence[RunResult]]",
) -> "Callable[[str, int], RunResult]":
    """Call it with a strategy's name and a number of devices to run, verify and time that case.

    A case that fails or does not match its reference leaves no timing. With `--benchmark-disable` the case is verified
    only.
    """
    from gpt_parallel.launch.local import LaunchError
    from gpt_parallel.spec import SpecError
    from gpt_parallel.suite import VerificationError

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
            )
        except (SpecError, LaunchError, VerificationError) as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        except BaseException:
            benchmark.has_error = True
            raise
        finally:
            progress.end()
        return results[-1]

    return run


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    record = config.stash.get(_RECORD, None)
    if record is not None and record.summaries:
        from gpt_parallel.breakdown_table import render_breakdown
        from gpt_parallel.table import render_table

        terminalreporter.section("gpt_parallel")
        terminalreporter.write_line(render_table(record.summaries) + render_breakdown(record.summaries))
        if profile := _settings(config).profile:
            terminalreporter.write_line(f"profiles: a directory for each case in {profile}")
        if record.is_timed and not config.getoption("gpt_no_report"):
            terminalreporter.write_line(_write_report(record, config))


def _write_report(record: "SessionRecord", config: pytest.Config) -> str:
    """What to tell the user about the report: where it is, or why it is not."""
    from gpt_parallel.report.load import ReportError
    from gpt_parallel.session import FILE_NAME

    given = config.getoption("gpt_report")
    directory = config.invocation_params.dir / given if given else config.rootpath / "reports" / "latest"
    try:
        record.write_report(directory)
    except (OSError, ReportError) as error:
        return f"REPORT NOT WRITTEN to {directory}: {error}"
    return f"report: {directory / 'report.html'} (also .md, .txt, .csv, charts and {FILE_NAME})"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A case that was skipped or failed is remembered, and leaves no timing even if it fails after it was timed."""
    report = yield
    if "gpt_record" in getattr(item, "fixturenames", ()) and report.outcome != "passed":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        record = _record(item.config)
        record.discard(item.nodeid)
        record.add_not_run(item.name, report.outcome, reason.removeprefix("Skipped: "))
        if "benchmark" in getattr(item, "funcargs", {}):
            item.funcargs["benchmark"].has_error = True  # type: ignore[attr-defined]
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, object]) -> None:
    """pytest-benchmark's own files say too which cases left no timing."""
    if _RECORD in config.stash:
        output_json["gpt_parallel"] = {"not_run": config.stash[_RECORD].not_run}
