"""The process that `tests.support.warm` forks others from, and what such a fork does."""

import atexit
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jinja2  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.backends.backend_svg  # noqa: F401
import pandas  # noqa: F401
import pytest
import setproctitle
import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import gpt_parallel.cli
import gpt_parallel.engine.job
import gpt_parallel.report.render
from gpt_parallel.engine.process import fork_server as engine_server
from gpt_parallel.engine.process.title import show_as
from gpt_parallel.launch import fork_server
from tests.support.warm import GPT_PARALLEL, PYTEST, RANKS, Subprocess, python_path

# It finds the command line only while the environment is as it was at the start; see engine/process/title.py.
os.environ["SPT_NOENV"] = "1"
setproctitle.getproctitle()
del os.environ["SPT_NOENV"]

NAME_OF_RANKS = Path("/proc/self/comm")  # what `ps` shows of a process, and of its forks


def main(arguments):
    """A fork's: [DIRECTORY, DESCRIPTOR, PID OF THE SERVER, PROGRAM OR MODULE, …].

    The descriptor is standard error, or the socket of a server of ranks.
    """
    directory, descriptor, _, program, *words = arguments
    os.chdir(directory)
    if program == RANKS:
        (sys.path[:],) = map(json.loads, words)
        NAME_OF_RANKS.write_text(program)
        show_as("rank server")
        return engine_server.main([descriptor])
    os.dup2(int(descriptor), 2)
    os.close(int(descriptor))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run where Ctrl-C is ignored
    atexit._clear()
    sys.path[:] = python_path(directory if program == PYTEST else None, os.environ)
    if program == PYTEST:  # which would have assertions in plugins rewritten
        words = ["-W", "ignore::pytest.PytestAssertRewriteWarning", *words]
    sys.argv = [program, *words]
    if program not in (PYTEST, GPT_PARALLEL):
        return importlib.import_module(program).main(*words) or 0
    twins = [Twin()]
    fork_server.subprocess = Subprocess(lambda *given, **options: start_server(twins, *given, **options))
    try:
        code = pytest.console_main() if program == PYTEST else gpt_parallel.cli.main()
    except SystemExit as left:
        code = left.code
    atexit._run_exitfuncs()
    return code if isinstance(code, int) else int(code is not None)


class Twin:
    """A fork of a command that has not begun, so that nothing of it is there; it becomes the server of its ranks.

    That is Popen's part in `gpt_parallel.launch.fork_server`.
    """

    def __init__(self):
        self.returncode = None
        self._line, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _become_server(far_end)
        far_end.close()

    def begin(self, output, environment, requests):
        socket.send_fds(self._line, [json.dumps(environment).encode()], [output, requests])
        self._line.close()

    def poll(self):
        return self._wait(os.WNOHANG)

    def wait(self):
        return self._wait(0)

    def _wait(self, options):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def _become_server(line):
    code = 0
    try:
        engine_server._close_all_but(line.fileno())
        message, descriptors, _, _ = socket.recv_fds(line, 1 << 20, 2)
        if message:  # otherwise the command has ended, and had no ranks
            output, requests = descriptors
            os.setsid()
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ.clear()
            os.environ.update(json.loads(message))
            show_as("rank server")
            code = engine_server.main([str(requests)])
    finally:
        os._exit(code)


def start_server(twins, command, **options):
    """The first server is the twin, others start cold."""
    if not twins:
        return subprocess.Popen(command, **options)
    twin = twins.pop()
    twin.begin(options["stdout"].fileno(), options["env"], *options["pass_fds"])
    return twin


if __name__ == "__main__":
    sys.exit(engine_server.main(sys.argv[1:]))
