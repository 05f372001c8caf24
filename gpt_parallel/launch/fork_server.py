"""Starts ranks without waiting for torch: a server imports torch once and forks a process for every rank.

The server (`engine/process/fork_server.py`) serves this process only and ends with it. It is started when needed, and
replaced when it has ended or when anything changes that a process inherits at its start: the interpreter, the working
directory, environment variables that Python and native libraries read as they load. On systems without a reliable fork,
ranks are plain subprocesses.
"""

import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

from gpt_parallel.base.errors import see

SERVER = "gpt_parallel.engine.process.fork_server"
AVAILABLE = sys.platform == "linux"

_READ_EARLY = ("PYTHON", "LD_", "GLIBC_", "MALLOC_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH_", "PYTORCH_")
_OVERRIDDEN = {
    **{f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")},
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
_DEFAULTS = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # weights on huge pages are read a tenth faster

_current: "_Server | None" = None
_lock = threading.Lock()


class ForkServerError(RuntimeError):
    """The server ended before a rank did, and the rank with it."""


class ForkedProcess:
    """A process that the server forks, with the part of Popen's interface that a launch needs.

    `pid` is None until the server has answered. If both server and process have ended without an exit code, `poll` and
    `wait` raise ForkServerError.
    """

    def __init__(self, server: "_Server", status_pipe: int) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None
        self._server = server
        self._status_pipe = status_pipe
        self._pending = b""

    def __del__(self) -> None:
        os.close(self._status_pipe)

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. The timeout is for each of the server's two messages."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._status_pipe, selectors.EVENT_READ)
            while self.returncode is None:
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired(SERVER, timeout or 0.0)
                self._read_status(os.read(self._status_pipe, 4096))
        return self.returncode

    def _read_status(self, data: bytes) -> None:
        """Parse the server's two lines: the process's id once it is forked, and its exit code once it has ended."""
        if not data:
            raise ForkServerError(self._server.describe_exit())
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if self.pid is None:
                self.pid = int(line)
            else:
                self.returncode = int(line)

    def send_signal(self, number: int) -> None:
        if self.poll() is not None:
            return
        if self.pid is None:
            self._server.stop()  # it is still importing, and must not fork later
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def stop_server(self) -> None:
        self._server.stop()

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


Process = ForkedProcess | subprocess.Popen[bytes]


def start(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes], events: int
) -> Process:
    """Run `module.main([DIRECTORY, EVENT_FD, PARENT_PID, *REST])`, given [DIRECTORY, *REST], in a new session.

    The process prints to `output` and inherits the descriptor `events`. Raises ForkServerError.
    """
    if AVAILABLE:
        return _server().fork(module, arguments, environment, output, events)
    directory, *rest = arguments
    return subprocess.Popen(
        _command(module, directory, str(events), str(os.getpid()), *rest),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=[events],
        start_new_session=True,
    )


def warm_up() -> None:
    """Start the server in the background, so that the first launch does not wait for it."""
    if AVAILABLE:
        _server()


def stop() -> None:
    """Stop the server, and with it any rank that still runs. The next launch starts a new one."""
    if _current is not None:
        _current.stop()


def _server() -> "_Server":
    """The server for the present environment, started now if needed."""
    global _current
    with _lock:
        if _current is None or not _current.is_usable():
            stop()
            _current = _Server()
        return _current


class _Server:
    """The server's process, as seen by the process that uses it."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._inherited = _inherited()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._requests, far_end = socket.socketpair()
        with far_end:
            self._process = subprocess.Popen(
                _command(SERVER, str(far_end.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=server_environment(),
                pass_fds=[far_end.fileno()],
                start_new_session=True,
            )
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_usable(self) -> bool:
        return self._owner == os.getpid() and self._inherited == _inherited() and self._process.poll() is None

    def fork(
        self, module: str, arguments: Sequence[str], environment: Mapping[str, str], output: IO[bytes], events: int
    ) -> ForkedProcess:
        status_pipe, far_end = os.pipe()
        process = ForkedProcess(self, status_pipe)
        try:
            with os.fdopen(os.memfd_create("request"), "wb") as request:
                request.write(json.dumps([module, arguments, dict(environment)]).encode())
                request.flush()
                socket.send_fds(self._requests, [b"+"], [request.fileno(), output.fileno(), events, far_end])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ForkServerError(self.describe_exit()) from error
        finally:
            os.close(far_end)
        return process

    def describe_exit(self) -> str:
        """A sentence that says how the server ended, and the last lines that it printed."""
        code = self._process.wait()
        how = f"exited with code {code}"
        if code < 0:
            how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        printed = "".join(f"\n  {line}" for line in self._log_lines()[-20:])
        return (
            f"the process that starts ranks (pid {self.pid}) {how}; the next run starts a new one{see('start')}"
            + printed
        )

    def _log_lines(self) -> list[str]:
        if self._log.closed:
            return []  # this process stopped the server
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def stop(self) -> None:
        if self._owner != os.getpid():
            return  # this process is a fork of the owner
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._log.close()
        atexit.unregister(self.stop)


def server_environment() -> dict[str, str]:
    """The environment that the server, and so every rank's allocator and libraries, start with.

    GLIBC_TUNABLES is not its first variable: glibc copies it, and setproctitle looks for the command line beside the
    first.
    """
    return {**_OVERRIDDEN, **_DEFAULTS, **os.environ, **_OVERRIDDEN}


def _inherited() -> tuple[str, str, list[str], dict[str, str]]:
    """The values that a server keeps from its start: interpreter, directory, search path, early variables."""
    early = {name: value for name, value in server_environment().items() if name.startswith(_READ_EARLY)}
    return sys.executable, _directory(), _search_path(), early


def _directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""  # it was deleted; nothing can be read from it


def _search_path() -> list[str]:
    return [entry for entry in sys.path if isinstance(entry, str)]


def _command(module: str, *arguments: str) -> list[str]:
    """`python -m MODULE ARGUMENTS` with this process's own search path, so that both import the same modules.

    `-m` alone would search the working directory first.
    """
    code = (
        f"import sys; sys.path[:] = {_search_path()!r}; import runpy; runpy.run_module({module!r}, run_name='__main__')"
    )
    return [sys.executable, "-c", code, *arguments]
