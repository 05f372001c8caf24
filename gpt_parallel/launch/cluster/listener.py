"""Where ranks that somebody else starts report: a listening socket, open for as long as the session.

Messages are JSON objects, a line each. A process says hello, answers a few questions about its clock and then behaves
like a rank on a pipe. A machine on which the launcher has to be started by hand follows: it is told when, and the run's
name, without being asked who it is. So whoever reaches the socket and speaks as they do can take part. What says
neither is shown the door and makes nothing fail.
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

_LOOK_S = 0.2


class RankListener:
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

    def tell_followers(self, order: Mapping[str, Any]) -> None:
        """Tell machines that follow to start their launchers, or to stop them; those that are gone are forgotten."""
        for follower in list(self._followers):
            try:
                follower.tell(order)
            except OSError:
                follower.close()
                self._followers.remove(follower)

    def gather(
        self,
        pending_ranks: list[PendingRank],
        run: str,
        size: int,
        order: Mapping[str, Any],
        go_on: Callable[[Sequence[PendingRank]], None],
    ) -> None:
        """Have `size` processes of this run among the guests, one of each number: the latest, and none that hung up.

        `go_on` is called now and then with those that came; it raises to give up. Machines that begin to follow
        meanwhile get the `order` to start.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            try:
                while len(pending_ranks) < size:
                    for key, _ in selector.select(_LOOK_S):
                        if key.data is None:
                            self._accept(selector)
                        elif isinstance(key.data, Connection):
                            if pending := self._greet(selector, key.data, run, order):
                                _admit(pending, pending_ranks, selector)
                        elif key.data in pending_ranks:  # it hung up, or speaks out of turn
                            _remove(key.data, pending_ranks, selector)
                    go_on(pending_ranks)
            finally:
                for key in selector.get_map().values():
                    if isinstance(key.data, Connection):
                        key.data.close()  # whoever has not said who he is

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with suppress(OSError):
            accepted = self._listener.accept()[0]
            try:
                selector.register(connection := Connection(accepted), selectors.EVENT_READ, connection)
            except OSError:
                accepted.close()

    def _greet(
        self, selector: selectors.BaseSelector, connection: Connection, run: str, order: Mapping[str, Any]
    ) -> PendingRank | None:
        """Hear who is there; None until all is said, and for a follower or a stranger."""
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
            connection.tell(order)
            self._followers.append(connection)
            return None
        hello = Hello.model_validate(message)
        if hello.run != run:
            raise ValueError("a rank of another run")
        return PendingRank(connection, hello)

    def close(self) -> None:
        """Followers take this for the end of the session."""
        self._listener.close()
        for follower in self._followers:
            follower.close()


def _admit(pending: PendingRank, pending_ranks: list[PendingRank], selector: selectors.BaseSelector) -> None:
    """A launcher that starts its ranks again (torchrun --max-restarts) gives them the same numbers."""
    for other in [other for other in pending_ranks if other.hello.rank == pending.hello.rank]:
        _remove(other, pending_ranks, selector)
    pending_ranks.append(pending)
    selector.register(pending.connection, selectors.EVENT_READ, pending)


def _remove(pending: PendingRank, pending_ranks: list[PendingRank], selector: selectors.BaseSelector) -> None:
    selector.unregister(pending.connection)
    pending_ranks.remove(pending)
    pending.disconnect()
