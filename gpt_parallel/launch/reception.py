"""Where ranks that somebody else starts report: a listening socket, open for as long as the session.

Messages are JSON objects, a line each. A process says hello, answers a few questions about its clock and then behaves
like a rank on a pipe. A machine on which the launcher has to be started by hand follows: it is told when. What says
neither is shown the door; it can make nothing fail.
"""

import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpt_parallel.spec import SpecError
from gpt_parallel.wire import Hello, keep_alive

_MAX_GREETING_BYTES = 1 << 16
_ANSWER_S = 30.0  # for a rank to answer a question; importing torch is in it
_NUM_PINGS = 8
_LOOK_S = 0.2


class Connection:
    """A socket with lines of JSON on it."""

    def __init__(self, connected: socket.socket) -> None:
        keep_alive(connected)
        self.socket = connected
        self.host: str = connected.getpeername()[0]
        self._received = bytearray()

    def fileno(self) -> int:
        return self.socket.fileno()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Raises OSError if the other side is gone."""
        self.socket.settimeout(_ANSWER_S)
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

    def ask(self, question: Mapping[str, Any], key: str) -> Any:
        """Raises OSError or ValueError unless the answer has `key`."""
        self.tell(question)
        deadline = time.monotonic() + _ANSWER_S
        while (line := self.receive(max(0.01, deadline - time.monotonic()))) is None:
            pass
        answer = json.loads(line)
        if not isinstance(answer, dict) or key not in answer:
            raise ValueError(f"expected an answer with {key!r}")
        return answer[key]

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Guest:
    """A process that is to be a rank."""

    def __init__(self, connection: Connection, hello: Hello) -> None:
        self.connection, self.hello = connection, hello
        self.clock_offset_s = 0.0
        self.is_crowded = False  # its machine has fewer cores than its ranks want

    def compare_clocks(self) -> None:
        """How far this process's monotonic clock is ahead of the guest's: of several tries, the quickest one's middle.

        Source: Cristian, "Probabilistic clock synchronization" (1989). The error is at most half of that try's time.
        """
        tries = []
        for _ in range(_NUM_PINGS):
            asked = time.monotonic()
            theirs = float(self.connection.ask({"ping": True}, "clock"))
            answered = time.monotonic()
            tries.append((answered - asked, (asked + answered) / 2 - theirs))
        self.clock_offset_s = min(tries)[1]


class Reception:
    """Accepts ranks and followers. Raises SpecError if the address cannot be listened on."""

    def __init__(self, host: str, port: int) -> None:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            raise SpecError(
                f"launcher address {host}:{port}: cannot be listened on ({error.strerror or error}); "
                "give this machine's name or address as the ranks' machines know it, and a free port"
            ) from error
        self._listener.setblocking(False)
        self.address = f"[{host}]" if ":" in host else host
        self.address += f":{self._listener.getsockname()[1]}"
        self._followers: list[Connection] = []

    def start_followers(self, order: Mapping[str, Any]) -> None:
        """Tell machines that follow to start their launchers, or to stop them; those that are gone are forgotten."""
        for follower in list(self._followers):
            try:
                follower.tell(order)
            except OSError:
                follower.close()
                self._followers.remove(follower)

    def wait_for_guests(
        self, run: str, size: int, order: Mapping[str, Any], go_on: Callable[[Sequence[Guest]], None]
    ) -> list[Guest]:
        """`size` processes of this run. `go_on` is called now and then with those that came; it raises to give up.

        Machines that begin to follow meanwhile get the `order` to start.
        """
        guests: list[Guest] = []
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while len(guests) < size:
                    for key, _ in selector.select(_LOOK_S):
                        if key.data is None:
                            self._accept(selector)
                        elif guest := self._greet(selector, key.data, run, order):
                            guests.append(guest)
                    go_on(guests)
            except BaseException:
                for guest in guests:
                    guest.connection.close()
                raise
            finally:
                for key in selector.get_map().values():
                    if key.data is not None:
                        key.data.close()  # whoever has not said who he is
        return guests

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            accepted = self._listener.accept()[0]
            try:
                selector.register(connection := Connection(accepted), selectors.EVENT_READ, connection)
            except OSError:
                accepted.close()

    def _greet(
        self, selector: selectors.BaseSelector, connection: Connection, run: str, order: Mapping[str, Any]
    ) -> Guest | None:
        """Hear who is there; None until all is said, and for a follower or a stranger."""
        guest = None
        try:
            line = connection.receive(0)
            if line is None:
                return None
            guest = self._identify(connection, line, run, order)
        except (OSError, ValueError, RecursionError):  # pydantic's and JSON's errors are ValueErrors
            connection.close()
        selector.unregister(connection)
        return guest

    def _identify(self, connection: Connection, line: bytes, run: str, order: Mapping[str, Any]) -> Guest | None:
        message = json.loads(line)
        if isinstance(message, dict) and "follow" in message:
            connection.tell(order)
            self._followers.append(connection)
            return None
        hello = Hello.model_validate(message)
        if hello.run != run:
            raise ValueError("a rank of another run")
        return Guest(connection, hello)

    def close(self) -> None:
        """Followers take this for the end of the session."""
        self._listener.close()
        for follower in self._followers:
            follower.close()
