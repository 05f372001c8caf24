"""The pytest plugin of `gpt-parallel bench`: a session of the shipped cases, started in any directory.

pytest's root directory is this package's folder, so that cases have the names that they have in a checkout. Its
configuration file, `conftest.py` and files are those of the working directory.
"""

from pathlib import Path

import pytest

from gpt_parallel.pytest_plugin.state import refuse_parallel_timing

_FOLDER = Path(__file__).parent  # the cases are the only tests in it


def command(arguments: list[str], directory: Path) -> list[str]:
    """pytest's arguments for a session in the working directory `directory`. The given ones override the defaults."""
    return [
        *("-p", __name__, f"--rootdir={_FOLDER}"),
        f"--confcutdir={directory if directory in _FOLDER.parents else _FOLDER}",
        *("-o", f"cache_dir={directory / '.pytest_cache'}", "--gpt-report=reports/latest"),
        *_conftest(directory),
        *arguments,
    ]


def _conftest(directory: Path) -> list[str]:
    """The working directory's conftest.py. Without a path pytest would load that of a directory `tests` too."""
    path = directory / "conftest.py"
    return [str(path)] if path.is_file() else []


def pytest_configure(config: pytest.Config) -> None:
    paths = [str(_FOLDER)], _conftest(config.invocation_params.dir)  # the first in a worker of pytest-xdist
    if config.args_source == pytest.Config.ArgsSource.ARGS and config.args not in paths:
        others = [path for path in config.args if path not in (*paths[0], *paths[1])]
        raise pytest.UsageError(
            f"gpt-parallel bench: {', '.join(others)}: only the shipped cases run; choose among them with -k, as in "
            '-k "4gpu"; your own files run with pytest FILE'
        )
    config.args = paths[0]
    refuse_parallel_timing(config)


def pytest_sessionstart(session: pytest.Session) -> None:
    if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
        reporter.startpath = session.config.rootpath  # so that it prints the cases' names, and no path to this package
