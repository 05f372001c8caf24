"""Progress under pytest: the line stands behind the dots and is taken back, so that they stay whole."""

from collections.abc import Callable

import pytest

from gpt_parallel.bench.progress import LOG_EVERY_S, CaseProgress


def pytest_progress(config: pytest.Config) -> CaseProgress:
    """Behind the dots of a terminal; with -v on lines of its own in a log; nothing with -q, or in a log without -v."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    verbosity = config.get_verbosity()
    if reporter is None or verbosity < 0:
        return CaseProgress(None)
    capture = config.pluginmanager.get_plugin("capturemanager")
    writer = config.get_terminal_writer()

    def uncaptured(write: Callable[[], None]) -> None:
        if capture is None:
            write()
            return
        with capture.global_and_fixture_disabled():
            write()

    if writer.hasmarkup:

        def show_inline(text: str) -> None:
            room = max(0, writer.fullwidth - writer.width_of_current_line - 2)
            # Save the cursor, write, clear to the end of the line, go back.
            uncaptured(lambda: _write(f"\x1b7 {text[:room]}\x1b[K\x1b8" if text else "\x1b[K"))

        def _write(text: str) -> None:
            writer._file.write(text)  # not counted as a part of pytest's line
            writer._file.flush()

        return CaseProgress(show_inline)

    if verbosity < 1:
        return CaseProgress(None)
    return CaseProgress(lambda text: uncaptured(lambda: reporter.write_line(text)) if text else None, LOG_EVERY_S)
