"""A process that reported as a rank, and the connection to it, which carries lines of JSON."""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

from gpt_parallel.base.host import keep_alive, pid_space
from gpt_parallel.schema.handshake import Hello

_MAX_GREETING_BYTES = 1 << 16
_SEND_S = 2.0  # for a short message to be sent: a lost connection must not block the launcher
_NUM_PINGS = 8


def seconds_until(deadline: float) -> float:
    """The time until a deadline as a timeout: never 0 or less."""
    return max(0.01, deadline - time.monotonic())


class Connection:
    """A socket that carries lines of JSON."""

    def __init__(self, connected: socket.socket) -> None:
        keep_alive(connected)
        self.socket = connected
        self.host: str = connected.getpeername()[0]
        self._received = bytearray()

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Mapping[str, Any], timeout_s: float = _SEND_S) -> None:
        """Raises OSError if the connection is closed or the message cannot be sent in time."""
        self.socket.settimeout(timeout_s)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> bytes | None:
        """Receive data; return a line once it is complete. Raises OSError for a closed connection or a long line."""
        self.socket.settimeout(timeout_s)
        data = self.socket.recv(4096)
        if not data or len(self._received) > _MAX_GREETING_BYTES:
            raise ConnectionError("it closed the connection" if not data else "it sent an overlong line")
        self._received += data
        line, is_complete, rest = self._received.partition(b"\n")
        if not is_complete:
            return None
        self._received = rest
        return bytes(line)

    def request(self, message: Mapping[str, Any], key: str, deadline: float) -> Any:
        """Send a message and return the answer's value of `key`.

        Raises OSError or ValueError for any other answer, TimeoutError if there is none by the deadline.
        """
        self.send(message, seconds_until(deadline))
        while (line := self.receive(seconds_until(deadline))) is None:
            pass
        answer = json.loads(line)
        if not isinstance(answer, dict) or key not in answer:
            raise ValueError(f"expected an answer with {key!r}")
        return answer[key]

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class PendingRank:
    """A process that reported and is to become a rank."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self.connection, self.hello = connection, hello
        self.clock_offset_s = 0.0
        self.process = _process_here(hello)

    def disconnect(self) -> None:
        """Close the connection, which ends the process; on this machine kill it too, in case it is stopped or hangs."""
        self.connection.close()
        if self.process is not None:
            with suppress(psutil.Error):
                self.process.kill()

    def compare_clocks(self, deadline: float) -> None:
        """Measure how far this machine's monotonic clock is ahead of the process's, by the quickest of several pings.

        Source: Cristian, "Probabilistic clock synchronization" (1989). The error is at most half of that try's time.
        """
        tries = []
        for _ in range(_NUM_PINGS):
            sent = time.monotonic()
            theirs = float(self.connection.request({"ping": True}, "clock", deadline))
            answered = time.monotonic()
            tries.append((answered - sent, (sent + answered) / 2 - theirs))
        self.clock_offset_s = min(tries)[1]


def _process_here(hello: Hello) -> psutil.Process | None:
    """The process that sent the hello, if it is on this machine and its arguments name the same run."""
    if hello.pid_space == pid_space():
        with suppress(psutil.Error):
            process = psutil.Process(hello.pid)
            if process.cmdline()[-1:] == [hello.run]:
                return process
    return None
