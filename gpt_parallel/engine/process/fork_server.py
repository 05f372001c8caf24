"""The process that ranks are forked from: `python -m gpt_parallel.engine.process.fork_server SOCKET_FD`.

Importing torch takes longer than a small run, so it is done once, here. Forking is sound because this process has one
thread and no CUDA context, and must stay so. Each byte on the socket brings four descriptors: a request, the rank's
output, its event pipe, and a pipe for its process id and, when it has ended, its exit code.
"""

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from gpt_parallel.base.warning_filters import print_warnings
from gpt_parallel.engine.process.title import show_as


def main(arguments: list[str]) -> int:
    (descriptor,) = map(int, arguments)
    print_warnings()
    importlib.import_module("gpt_parallel.engine.job")
    gc.collect()
    gc.freeze()  # a rank's garbage collections skip these objects and do not copy their pages
    with socket.socket(fileno=descriptor) as requests:
        Server(requests).serve()
    return 0


class Server:
    """Forks a rank for each request and reports its end."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._bell, self._wake = socket.socketpair()  # rung by SIGCHLD
        self._status_pipes: dict[int, int] = {}

    def serve(self) -> None:
        """Serve requests until the other side closes the connection or ends.

        The kernel's parent-death signal does not suffice: it is sent when the *thread* that started this process ends.
        """
        self._wake.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno())
        with selectors.DefaultSelector() as selector:
            selector.register(self._bell, selectors.EVENT_READ, self._reap)
            selector.register(self._requests, selectors.EVENT_READ, self._fork)
            while all(key.data() for key, _ in selector.select()):
                pass

    def _reap(self) -> bool:
        self._bell.recv(4096)
        for pid in list(self._status_pipes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                pipe = self._status_pipes.pop(pid)
                _say(pipe, os.waitstatus_to_exitcode(status))
                os.close(pipe)
        return True

    def _fork(self) -> bool:
        byte, descriptors, _, _ = socket.recv_fds(self._requests, 1, 4)
        if not byte:
            return False
        request, output, events, status_pipe = descriptors
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _become_rank(request, output, events, status_pipe, server)
        _say(status_pipe, pid)
        self._status_pipes[pid] = status_pipe
        for descriptor in (request, output, events):
            os.close(descriptor)
        return True


def _say(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, b"%d\n" % number)


def _become_rank(request: int, output: int, events: int, status_pipe: int, server: int) -> NoReturn:
    code = 1
    try:
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(output, 1)
            os.dup2(output, 2)
            module, (directory, *rest), environment = json.loads(os.pread(request, os.fstat(request).st_size, 0))
            _close_all_but(events, status_pipe)  # the latter ends when both server and rank have ended
            os.environ.clear()
            os.environ.update(environment)
            code = importlib.import_module(module).main([directory, str(events), str(server), *rest])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _close_all_but(*kept: int) -> None:
    for descriptor in kept:
        os.set_inheritable(descriptor, False)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            with suppress(OSError):  # the listing itself
                os.close(descriptor)


if __name__ == "__main__":
    show_as("rank server")
    sys.exit(main(sys.argv[1:]))
