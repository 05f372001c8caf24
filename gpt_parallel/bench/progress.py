"""Shows the progress of long work: a line that changes on a terminal, a line per phase in a log."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt_parallel.schema.run import RunSpec

Show = Callable[[str], None]
LOG_EVERY_S = 10.0  # a thousand rounds must not add a thousand lines to a log


class CaseProgress:
    """Shows rank 0's phases as short texts, with the tokens/s of the finished rounds. Called as `(rank, phase)`.

    With `show` None it shows nothing; of a launch's rounds it shows the first and then one every `every_s` seconds.
    """

    def __init__(self, show: Show | None, every_s: float = 0.0) -> None:
        self._show, self._every_s = show or (lambda text: None), every_s
        self._name, self._tokens_per_round = "", 0
        self._first_round_s: float | None = None
        self._shown_round_s = 0.0
        self._num_rounds = 0

    def start(self, spec: "RunSpec") -> None:
        """Announce that the next phases are those of a launch of this case (or of its reference)."""
        self._name, self._tokens_per_round = spec.name, spec.workload.num_output_tokens
        self._first_round_s, self._num_rounds = None, 0

    def end(self) -> None:
        """Erase the line."""
        self._show("")

    def __call__(self, rank: int, phase: str) -> None:
        if rank != 0:
            return
        text = f"{self._name}: {phase}" if self._name else phase
        if phase.startswith("round "):
            self._show_round(text)
        else:
            self._first_round_s = None
            self._show(text)

    def _show_round(self, text: str) -> None:
        now = time.monotonic()
        if self._first_round_s is None:
            self._first_round_s, self._num_rounds = now, 0
        else:
            self._num_rounds += 1
            if now - self._shown_round_s < self._every_s:
                return
        self._shown_round_s = now
        seconds = now - self._first_round_s
        rate = f", {self._num_rounds * self._tokens_per_round / seconds:,.0f} tokens/s" if seconds else ""
        self._show(text + rate)
