"""What a rank tells its launcher while it runs: JSON lines on a pipe."""

import json
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_parallel.schema.result import RankReport


class LostPeerError(RuntimeError):
    """Another rank has ended, or does not answer: its error is the cause, not this one."""


class StatusPipe:
    """Writes a rank's phases and its failure or its result. The launcher sees the pipe close when the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.phase = "start"
        self.is_done = False

    def enter(self, phase: str) -> None:
        self.phase = phase
        self._write({"phase": phase})

    def deliver(self, report: "RankReport") -> None:
        """The result; the last that a rank tells."""
        self._write({"report": report.model_dump(mode="json")})
        self.is_done = True

    def show_stacks(self, text: str) -> None:
        self._write({"stacks": text})

    def fail(self, error: BaseException) -> None:
        """Report the exception being handled. `lost_peer` marks errors that another rank's end causes."""
        frames = traceback.extract_tb(error.__traceback__)
        in_torch = bool(frames) and "torch/distributed" in frames[-1].filename.replace(os.sep, "/")
        self._write(
            {
                "phase": self.phase,
                "error": f"{type(error).__name__}: {error}",
                "traceback": "".join(traceback.format_exception(error)),
                "lost_peer": in_torch or isinstance(error, LostPeerError),
            }
        )

    def _write(self, event: dict[str, Any]) -> None:
        data = json.dumps(event).encode() + b"\n"
        try:
            with self._lock:
                while data:
                    data = data[os.write(self._descriptor, data) :]
        except (BrokenPipeError, ConnectionResetError):
            pass  # the launcher is gone, and will take this rank along
