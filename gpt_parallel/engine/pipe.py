"""The status messages of a rank to its launcher: JSON lines on a pipe."""

import json
import os
import threading
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt_parallel.schema.result import RankReport


class LostPeerError(RuntimeError):
    """Another rank has ended or does not answer; that rank's error is the cause."""


class StatusPipe:
    """Writes a rank's phases, and its error or its report. The launcher sees the pipe close when the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self.phase = "start"
        self.is_done = False

    def enter(self, phase: str) -> None:
        self.phase = phase
        self._write({"phase": phase})

    def deliver(self, report: "RankReport") -> None:
        """Send the report, the last message of a rank."""
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
            pass  # the launcher has ended, and the kernel will end this rank with it
