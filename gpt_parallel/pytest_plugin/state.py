"""The objects that a pytest session has one of: settings, suite, record keeper and progress, created on first use."""

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpt_parallel.bench.progress import CaseProgress
    from gpt_parallel.bench.suite import Suite
    from gpt_parallel.inputs.settings import Settings
    from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper

SETTINGS: "pytest.StashKey[Settings]" = pytest.StashKey()
SUITE: "pytest.StashKey[Suite]" = pytest.StashKey()
KEEPER: "pytest.StashKey[SessionKeeper]" = pytest.StashKey()
_PROGRESS: "pytest.StashKey[CaseProgress]" = pytest.StashKey()
NOTES: "pytest.StashKey[list[str]]" = pytest.StashKey()


def settings_of(config: pytest.Config) -> "Settings":
    if SETTINGS not in config.stash:
        from gpt_parallel.base.errors import SpecError
        from gpt_parallel.inputs.cases import cases_of, with_known_strategies
        from gpt_parallel.inputs.execution import device_counts, resolve_device
        from gpt_parallel.pytest_plugin.options import choose_settings

        try:
            settings, notes = choose_settings(config)
            resolve_device(settings)
            counts = device_counts(settings)
            if settings.launcher and not settings.device_counts and len(counts) == 1:
                notes.append(f"the launcher starts {counts[0]} ranks: cases are made for {counts[0]} devices only")
            if settings.has_degrees and (known := with_known_strategies(settings)):
                cases_of(known)
        except SpecError as error:
            raise usage_error(error.problems) from error
        config.stash[SETTINGS], config.stash[NOTES] = settings, notes
    return config.stash[SETTINGS]


def usage_error(problems: list[str]) -> pytest.UsageError:
    return pytest.UsageError("gpt_parallel: " + "\n  ".join(problems))


def suite_of(config: pytest.Config) -> "Suite":
    if SUITE not in config.stash:
        from gpt_parallel.bench.suite import Suite
        from gpt_parallel.schema.fault import FaultSpec

        text = config.getoption("gpt_inject_fault")
        config.stash[SUITE] = Suite(settings_of(config), progress_of(config), FaultSpec.parse(text) if text else None)
    return config.stash[SUITE]


def progress_of(config: pytest.Config) -> "CaseProgress":
    if _PROGRESS not in config.stash:
        from gpt_parallel.pytest_plugin.progress import pytest_progress

        config.stash[_PROGRESS] = pytest_progress(config)
    return config.stash[_PROGRESS]


def keeper_of(config: pytest.Config) -> "SessionKeeper":
    """The session's keeper; one without files if a test's body requests the fixture by name."""
    if KEEPER not in config.stash:
        from gpt_parallel.pytest_plugin.session_keeper import SessionKeeper

        config.stash[KEEPER] = SessionKeeper(settings_of(config), None)
        config.pluginmanager.register(config.stash[KEEPER])
    return config.stash[KEEPER]


def refuse_parallel_timing(config: pytest.Config) -> None:
    """Raise UsageError if pytest-xdist would run timed cases side by side; call it from a conftest.py.

    Otherwise pytest-benchmark would disable itself, and the tests would pass without a timing.
    """
    # pytest-benchmark checks the variable too, which a worker's child processes inherit.
    parallel = config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ
    if parallel and not config.getoption("benchmark_disable", False) and not config.option.collectonly:
        raise pytest.UsageError(
            "gpt_parallel: cases cannot be timed side by side with pytest-xdist (-n); "
            "run them without -n, or add --benchmark-disable to verify only"
        )


def refuse_foreign_fixture(benchmark: object) -> None:
    """Fail a case whose `benchmark` fixture is another plugin's, as pytest-codspeed's is with --codspeed."""
    origin = type(benchmark).__module__
    if origin.partition(".")[0] != "pytest_benchmark":
        raise pytest.fail.Exception(
            f"gpt_parallel: the fixture 'benchmark' is that of {origin.partition('.')[0]}, but cases are timed by "
            "pytest-benchmark; run them without that plugin (leave out --codspeed, or add -p no:codspeed)",
            pytrace=False,
        )
