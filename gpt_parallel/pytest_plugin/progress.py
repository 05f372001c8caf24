"""Progress under pytest: a line behind the dots, erased afterwards so that the dots stay in one piece."""

from collections.abc import Callable

import pytest

from gpt_parallel.bench.progress import LOG_EVERY_S, CaseProgress


def pytest_progress(config: pytest.Config) -> CaseProgress:
    """Make the progress display: behind a terminal's dots, with -v on lines of its own in a log, otherwise none."""
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
            width = max(0, writer.fullwidth - writer.width_of_current_line - 2)
            # Save the cursor, write, clear to the end of the line, restore the cursor.
            uncaptured(lambda: _write(f"\x1b7 {text[:width]}\x1b[K\x1b8" if text else "\x1b[K"))

        def _write(text: str) -> None:
            writer._file.write(text)  # not counted as a part of pytest's line
            writer._file.flush()

        return CaseProgress(show_inline)

    if verbosity < 1:
        return CaseProgress(None)
    return CaseProgress(lambda text: uncaptured(lambda: reporter.write_line(text)) if text else None, LOG_EVERY_S)
