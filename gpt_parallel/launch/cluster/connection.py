"""A process that called in to be a rank, and the connection to it: lines of JSON."""

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
_TELL_S = 2.0  # for a few words to be taken; a line that is cut must hold up nobody
_NUM_PINGS = 8


def left(deadline: float) -> float:
    """Seconds until then, as a timeout: never none."""
    return max(0.01, deadline - time.monotonic())


class Connection:
    """A socket with lines of JSON on it."""

    def __init__(self, connected: socket.socket) -> None:
        keep_alive(connected)
        self.socket = connected
        self.host: str = connected.getpeername()[0]
        self._received = bytearray()

    def fileno(self) -> int:
        return self.socket.fileno()

    def tell(self, message: Mapping[str, Any], timeout_s: float = _TELL_S) -> None:
        """Raises OSError if the other side is gone, or does not take it."""
        self.socket.settimeout(timeout_s)
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, timeout_s: float) -> bytes | None:
        """Take what has come; a line, once it is whole. Raises OSError if the other side is gone or says too much."""
        self.socket.settimeout(timeout_s)
        data = self.socket.recv(4096)
        if not data or len(self._received) > _MAX_GREETING_BYTES:
            raise ConnectionError("it hung up")
        self._received += data
        line, is_whole, rest = self._received.partition(b"\n")
        if not is_whole:
            return None
        self._received = rest
        return bytes(line)

    def ask(self, question: Mapping[str, Any], key: str, deadline: float) -> Any:
        """Raises OSError or ValueError unless the answer has `key`, TimeoutError if there is none by then."""
        self.tell(question, left(deadline))
        while (line := self.receive(left(deadline))) is None:
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
    """A process that is to be a rank."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self.connection, self.hello = connection, hello
        self.clock_offset_s = 0.0
        self.process = _process_here(hello)

    def disconnect(self) -> None:
        """Hang up, at which it ends; on this machine even if it is stopped or does not see it."""
        self.connection.close()
        if self.process is not None:
            with suppress(psutil.Error):
                self.process.kill()

    def compare_clocks(self, deadline: float) -> None:
        """How far this process's monotonic clock is ahead of the guest's: of several tries, the quickest one's middle.

        Source: Cristian, "Probabilistic clock synchronization" (1989). The error is at most half of that try's time.
        """
        tries = []
        for _ in range(_NUM_PINGS):
            asked = time.monotonic()
            theirs = float(self.connection.ask({"ping": True}, "clock", deadline))
            answered = time.monotonic()
            tries.append((answered - asked, (asked + answered) / 2 - theirs))
        self.clock_offset_s = min(tries)[1]


def _process_here(hello: Hello) -> psutil.Process | None:
    """The process that said it, if it is one of this machine, and a rank of that run as its arguments tell."""
    if hello.pid_space == pid_space():
        with suppress(psutil.Error):
            process = psutil.Process(hello.pid)
            if process.cmdline()[-1:] == [hello.run]:
                return process
    return None
