"""The socket at which ranks that a launcher started report; it listens for as long as the session lasts.

Messages are JSON objects, one per line. A process sends a hello, answers requests about its clock and then behaves like
a rank on a pipe. A machine on which the launcher has to be started by hand follows: it receives the times to start and
the runs' names, without authentication. So any process that reaches the socket and uses this protocol can take part.
Anything else is disconnected; it does not fail the run.
"""

import json
import selectors
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from gpt_parallel.base.errors import SpecError
from gpt_parallel.launch.cluster.connection import Connection, PendingRank
from gpt_parallel.schema.handshake import Hello

_POLL_S = 0.2


class RankListener:
    """Accepts ranks and followers. Raises SpecError if the address cannot be listened on."""

    def __init__(self, host: str, port: int) -> None:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self._listener = socket.create_server((host, port), family=family, backlog=1024)
        except OSError as error:
            raise SpecError(
                f"launcher address {host}:{port}: cannot be listened on ({error.strerror or error}); "
                "give a name or address by which the ranks' machines reach this one, and a free port"
            ) from error
        self._listener.setblocking(False)
        self.address = f"[{host}]" if ":" in host else host
        self.address += f":{self._listener.getsockname()[1]}"
        self._followers: list[Connection] = []

    def notify_followers(self, order: Mapping[str, Any]) -> None:
        """Order the machines that follow to start or stop their launchers; forget those that have disconnected."""
        for follower in list(self._followers):
            try:
                follower.send(order)
            except OSError:
                follower.close()
                self._followers.remove(follower)

    def gather(
        self,
        pending_ranks: list[PendingRank],
        run: str,
        size: int,
        order: Mapping[str, Any],
        check_progress: Callable[[Sequence[PendingRank]], None],
    ) -> None:
        """Fill `pending_ranks` with `size` connected processes of this run, the latest of each rank number.

        `check_progress` is called regularly with those that have reported; it raises to give up. Machines that begin to
        follow meanwhile receive the `order` to start.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while len(pending_ranks) < size:
                    for key, _ in selector.select(_POLL_S):
                        if key.data is None:
                            self._accept(selector)
                        elif isinstance(key.data, Connection):
                            if pending := self._read_hello(selector, key.data, run, order):
                                _admit(pending, pending_ranks, selector)
                        elif key.data in pending_ranks:  # it disconnected, or sent an unexpected message
                            _remove(key.data, pending_ranks, selector)
                    check_progress(pending_ranks)
            finally:
                for key in selector.get_map().values():
                    if isinstance(key.data, Connection):
                        key.data.close()  # it has sent no hello

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            accepted = self._listener.accept()[0]
            try:
                selector.register(connection := Connection(accepted), selectors.EVENT_READ, connection)
            except OSError:
                accepted.close()

    def _read_hello(
        self, selector: selectors.BaseSelector, connection: Connection, run: str, order: Mapping[str, Any]
    ) -> PendingRank | None:
        """Read a connection's first line; None until it is complete, and for a follower or an invalid line."""
        pending = None
        try:
            line = connection.receive(0)
            if line is None:
                return None
            pending = self._identify(connection, line, run, order)
        except (OSError, ValueError, RecursionError):  # pydantic's and JSON's errors are ValueErrors
            connection.close()
        selector.unregister(connection)
        return pending

    def _identify(self, connection: Connection, line: bytes, run: str, order: Mapping[str, Any]) -> PendingRank | None:
        message = json.loads(line)
        if isinstance(message, dict) and "follow" in message:
            connection.send(order)
            self._followers.append(connection)
            return None
        hello = Hello.model_validate(message)
        if hello.run != run:
            raise ValueError("a rank of another run")
        return PendingRank(connection, hello)

    def close(self) -> None:
        """Stop listening and disconnect the followers, for which this ends the session."""
        self._listener.close()
        for follower in self._followers:
            follower.close()


def _admit(pending: PendingRank, pending_ranks: list[PendingRank], selector: selectors.BaseSelector) -> None:
    """Add a process. It replaces one of the same number, which a launcher has restarted (torchrun --max-restarts)."""
    for other in [other for other in pending_ranks if other.hello.rank == pending.hello.rank]:
        _remove(other, pending_ranks, selector)
    pending_ranks.append(pending)
    selector.register(pending.connection, selectors.EVENT_READ, pending)


def _remove(pending: PendingRank, pending_ranks: list[PendingRank], selector: selectors.BaseSelector) -> None:
    selector.unregister(pending.connection)
    pending_ranks.remove(pending)
    pending.disconnect()
