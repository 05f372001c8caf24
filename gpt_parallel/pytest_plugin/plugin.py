"""The hooks: they add options, make the cases, check them before any rank starts, and keep the session's files.

pytest loads this module at every start, so it imports nothing heavy at its top, and never torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpt_parallel.base.warning_filters import printed_warnings
from gpt_parallel.pytest_plugin.benchmark_options import check_comparison
from gpt_parallel.pytest_plugin.fixtures import gpt_batch_size as gpt_batch_size
from gpt_parallel.pytest_plugin.fixtures import gpt_case as gpt_case
from gpt_parallel.pytest_plugin.fixtures import gpt_record as gpt_record
from gpt_parallel.pytest_plugin.fixtures import gpt_suite as gpt_suite
from gpt_parallel.pytest_plugin.items import is_case
from gpt_parallel.pytest_plugin.state import KEEPER, NOTES, SETTINGS, SUITE, settings_of, suite_of, usage_error
from gpt_parallel.pytest_plugin.timing import measured_clock

if TYPE_CHECKING:
    from gpt_parallel.inputs.settings import Settings


def pytest_addoption(parser: pytest.Parser) -> None:
    from gpt_parallel.pytest_plugin.options import add_options

    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if not config.getoption("gpt_print_config"):
        return None
    from gpt_parallel.inputs.yaml_file import to_yaml

    print(to_yaml(settings_of(config)), end="")
    return 0


def pytest_configure(config: pytest.Config) -> None:
    from gpt_parallel.pytest_plugin.options import has_own_options, refuse_contradictions

    config.addinivalue_line("markers", "gpus(n): the number of devices a generation case runs on")
    if not _has_benchmark(config):  # with an unknown mark, cases would fail before our message about its absence
        config.addinivalue_line("markers", "benchmark: a mark of pytest-benchmark, which is not loaded")
    refuse_contradictions(config)
    if has_own_options(config):
        settings_of(config)  # a wrong option is a usage error now, not a failed case later


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"gpt_parallel: {note}" for note in config.stash.get(NOTES, [])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise tests that use `gpt_case`, `strategy` and `num_gpus` with the strategy × device count cases."""
    if not {"gpt_case", "strategy", "num_gpus"} <= set(metafunc.fixturenames):
        return
    if any("num_gpus" in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize")):
        return
    from gpt_parallel.pytest_plugin.cases import make_parameters

    metafunc.parametrize(*make_parameters(settings_of(metafunc.config)))


def _check_strategies(settings: "Settings") -> None:
    """Raise UsageError for strategies without a case, now that every conftest.py has registered its own."""
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.inputs.cases import check_strategies_have_cases

    try:
        check_strategies_have_cases(settings)
    except SpecError as error:
        raise usage_error(error.problems) from error


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Let tables stay tables where the terminal cannot encode their characters."""
    from gpt_parallel.base.terminal import use_stand_ins

    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    use_stand_ins([getattr(reporter._tw, "_file", None)] if reporter else [])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make pytest-benchmark time cases by the ranks' clock; it reads the nearest mark."""
    if SETTINGS in config.stash:
        _check_strategies(config.stash[SETTINGS])
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
    """Check options and all cases before any rank starts; cases that cannot run make one usage error."""
    config = session.config
    failed = session.testsfailed and not config.option.continue_on_collection_errors
    cases = [item for item in session.items if is_case(item)]
    if config.option.collectonly or failed or not cases or _is_xdist_worker(config):
        return
    notes = check_comparison(config)
    _check_specs(session)
    _start_keeper(config, [item for item in cases if not item.get_closest_marker("skip")], notes)


@printed_warnings()
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
        if not session.config.getoption("gpt_resume"):  # a resumed session may need no rank
            fork_server.warm_up()
        try:
            suite_of(session.config).spec(
                parameters["strategy"], parameters["num_gpus"], parameters.get("gpt_batch_size")
            )
        except SpecError as error:
            problems.update(dict.fromkeys(error.problems))
    if problems:
        raise usage_error(list(problems))


def _start_keeper(config: pytest.Config, cases: list[pytest.Item], notes: list[str]) -> None:
    """Register the session's keeper; print the notes, and others about random weights and an earlier journal."""
    from gpt_parallel.base.errors import SpecError
    from gpt_parallel.base.escaping import plain_lines
    from gpt_parallel.base.redaction import redact
    from gpt_parallel.base.signals import install_interrupt_handler
    from gpt_parallel.launch import fork_server
    from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper, weights_notes

    keeper = SessionKeeper(settings_of(config), _report_directory(config))
    try:
        notes = notes + weights_notes(suite_of(config)) + keeper.begin(cases, resume=config.getoption("gpt_resume"))
    except SpecError as error:
        raise usage_error(error.problems) from error
    notes += map(plain_lines, map(redact, suite_of(config).notes))
    config.stash[KEEPER] = keeper
    config.pluginmanager.register(keeper)
    if not all(keeper.has_finished(case.nodeid) for case in cases):
        fork_server.warm_up()
    install_interrupt_handler()
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        for note in notes:
            reporter.write_line(f"gpt_parallel: {note}")


def _report_directory(config: pytest.Config) -> Path | None:
    """The directory for the session's files; None if it writes none or times nothing."""
    is_disabled = config.getoption("benchmark_disable") and not config.getoption("benchmark_enable")
    if config.getoption("gpt_no_report") or is_disabled or config.getoption("benchmark_skip"):
        return None
    given = config.getoption("gpt_report")
    return config.invocation_params.dir / given if given else config.rootpath / "reports" / "latest"


def pytest_unconfigure(config: pytest.Config) -> None:
    if SUITE in config.stash:
        from gpt_parallel.base.signals import restore_interrupt_handlers
        from gpt_parallel.launch import fork_server

        fork_server.stop()
        restore_interrupt_handlers()


def _is_xdist_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
