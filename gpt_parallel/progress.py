"""What long work shows while it runs: a line that changes on a terminal, a line per phase in a log.

Under pytest the line stands behind the dots and is taken back, so that they stay whole.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from gpt_parallel.spec import RunSpec

Show = Callable[[str], None]


class CaseProgress:
    """Rank 0's phases as short texts, with the tokens/s of the rounds that are over. Called as `(rank, phase)`.

    With `show` None it shows nothing.
    """

    def __init__(self, show: Show | None) -> None:
        self._show = show or (lambda text: None)
        self._name, self._tokens_per_round = "", 0
        self._first_round_s: float | None = None
        self._rounds_over = 0

    def start(self, spec: "RunSpec") -> None:
        """The next phases are those of a launch of this case (or of its reference)."""
        self._name, self._tokens_per_round = spec.name, spec.workload.num_output_tokens
        self._first_round_s, self._rounds_over = None, 0

    def end(self) -> None:
        """Take the line back."""
        self._show("")

    def __call__(self, rank: int, phase: str) -> None:
        if rank != 0:
            return
        text = f"{self._name}: {phase}" if self._name else phase
        if phase.startswith("round "):
            text += self._so_far()
        self._show(text)

    def _so_far(self) -> str:
        now = time.monotonic()
        if self._first_round_s is None:
            self._first_round_s, self._rounds_over = now, 0
            return ""
        self._rounds_over += 1
        seconds = now - self._first_round_s
        return f", {self._rounds_over * self._tokens_per_round / seconds:,.0f} tokens/s" if seconds else ""


def pytest_progress(config: "pytest.Config") -> Show | None:
    """Shows a text behind the dots of a terminal ("" takes it back), or on a line of its own with -v in a log.

    None where nothing is to be shown: with -q, and in logs without -v.
    """
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    verbosity = config.get_verbosity()
    if reporter is None or verbosity < 0:
        return None
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

        return show_inline

    if verbosity < 1:
        return None
    return lambda text: uncaptured(lambda: reporter.write_line(text)) if text else None
