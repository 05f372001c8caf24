"""Processes that start warm: forks of one that has imported what pytest, the CLI, ranks and the judge need.

A cold session spends its time on imports: a second and a half on torch's, two more where it has a judge, one on what
draws charts. All else is as a user has it: a process in a session of its own, with its own environment, directory and
streams, which starts a server that forks its ranks. So are the servers of the test process itself.

What tests say of imports, of memory and of starting up needs cold processes: `users_server` is for those.
tests/end_to_end/test_docs.py has a cold one of every kind of command.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from gpt_parallel.launch import fork_server
from tests.support.paths import ROOT

PYTEST, GPT_PARALLEL, RANKS = "pytest", "gpt-parallel", "ranks"
_SERVER = "tests.support.warm_commands"


@cache
def _server():
    """One for all of this process's forks, whatever environment each of them has."""
    mine = fork_server.SERVER, fork_server.subprocess
    fork_server.SERVER, fork_server.subprocess = _SERVER, subprocess
    try:
        return fork_server._Server()
    finally:
        fork_server.SERVER, fork_server.subprocess = mine


@contextmanager
def users_server():
    """Has this process's ranks forked from what a user's are forked from, started cold."""
    mine, fork_server.subprocess = fork_server.subprocess, subprocess
    fork_server.stop()
    try:
        yield
    finally:
        fork_server.stop()
        fork_server.subprocess = mine


def _temporary():
    return tempfile.TemporaryFile()


def _words(command):
    """`python -m pytest …`, `…/gpt-parallel …` and the like with the program's bare name."""
    words = list(map(str, command))
    if words[:2] == [sys.executable, "-m"]:
        words = words[2:]
    return [Path(words[0]).name.replace("_", "-"), *words[1:]]


class _Fork:
    """A process with as much of Popen as is needed."""

    def __init__(self, arguments, environment, output, descriptor):
        self._process = _server().fork(_SERVER, arguments, environment, output, descriptor)

    @property
    def pid(self):
        while self._process.pid is None:
            self._process._read_status(os.read(self._process._status_pipe, 4096))
        return self._process.pid

    @property
    def returncode(self):
        return self._process.returncode

    def poll(self):
        return self._process.poll()

    def wait(self, timeout=None):
        return self._process.wait(timeout)

    def send_signal(self, number):
        assert self.pid
        self._process.send_signal(number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class RankServer(_Fork):
    """Popen's part in `gpt_parallel.launch.fork_server`."""

    def __init__(self, command, *, stdout, env, pass_fds, **_):
        super().__init__([os.getcwd(), RANKS, json.dumps(fork_server._search_path())], env, stdout, *pass_fds)


class Subprocess:
    """The module `subprocess` as `gpt_parallel.launch.fork_server` sees it, with another Popen."""

    def __init__(self, popen):
        self.Popen = popen

    def __getattr__(self, name):
        return getattr(subprocess, name)


class Command(_Fork):
    """A command that runs.

    Its output goes to files, so that it never has to wait, or to the given descriptor; `merged`: both streams to one.
    """

    def __init__(self, command, *, env, cwd=ROOT, merged=False, output=None):
        self.args = command
        self._output = _temporary() if output is None else os.fdopen(output, "wb", closefd=False)
        self._error = self._output if merged else _temporary()
        super().__init__([str(cwd), *_words(command)], env, self._output, self._error.fileno())

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self._text(self._output), None if self._error is self._output else self._text(self._error)

    def _text(self, file):
        file.seek(0)
        return file.read().decode(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()
        self.wait(10)
        self._output.close()
        self._error.close()


def run(command, *, env=None, cwd=None, timeout=200):
    """As subprocess.run does with text and captured output."""
    with Command(command, cwd=cwd or os.getcwd(), env=os.environ if env is None else env) as running:
        output, error = running.communicate(timeout)
        return subprocess.CompletedProcess(running.args, running.returncode, output, error)


def python_path(directory, environment):
    """What Python would look through: the given directory, PYTHONPATH, and what is installed."""
    given = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    installed = [
        entry
        for entry in sys.path
        if not (path := Path(entry or ".")).is_relative_to(ROOT) or path.is_relative_to(sys.prefix)
    ]
    return [*([str(directory)] if directory else []), *given, *installed, str(ROOT)]
