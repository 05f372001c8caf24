"""Two machines on one: namespaces with their own network, name, hosts file and clock, joined by a cable (veth).

Run as a script it is what keeps such a machine there until its standard input closes.
"""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

ADDRESSES = {"one": "10.77.0.1", "two": "10.77.0.2"}
CLOCK_AHEAD_S = 5000


class CannotMakeThemError(Exception):
    """This machine does not let us make namespaces; the text says what failed."""


class Machine:
    """`command(...)` is what runs something there, in a directory."""

    def __init__(self, name, keeper, user_pid):
        self.name, self.address = name, ADDRESSES[name]
        self._keeper = keeper
        self.pid = int(keeper.stdout.readline() or 0)
        if not self.pid:
            raise CannotMakeThemError(keeper.stderr.read().strip())
        self._user_pid = user_pid or self.pid

    def command(self, *words, directory="/"):
        enter = [
            "nsenter",
            "--preserve-credentials",
            f"--user=/proc/{self._user_pid}/ns/user",
            "--target",
            str(self.pid),
        ]
        kinds = ["--net", "--uts", "--mount", "--time"]
        return [*enter, *kinds, "sh", "-c", 'cd "$0" && exec "$@"', str(directory), *map(str, words)]

    def run(self, *words):
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise CannotMakeThemError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout


class TwoMachines:
    """A context manager; `one` and `two` are Machines."""

    def __init__(self, directory: Path):
        self._hosts = directory / "hosts"
        self._stack = ExitStack()

    def __enter__(self):
        missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
        if missing:
            raise CannotMakeThemError(f"there is no {missing[0]} here")
        self._hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{a} {name}\n" for name, a in ADDRESSES.items()))
        with ExitStack() as stack:
            self.one = self._make(stack, "one", ["unshare", "--user", "--map-root-user"])
            inside = ["nsenter", "--preserve-credentials", f"--user=/proc/{self.one.pid}/ns/user", "unshare"]
            self.two = self._make(stack, "two", inside, self.one.pid, [f"--monotonic={CLOCK_AHEAD_S}"])
            self.one.run(
                "ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", str(self.two.pid)
            )
            for machine in (self.one, self.two):
                machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "cable")
                machine.run("ip", "link", "set", "cable", "up")
                machine.run("ip", "link", "set", "lo", "up")
            self._stack = stack.pop_all()
        return self

    def _make(self, stack, name, start, user_pid=None, more=()):
        kinds = ["--net", "--uts", "--mount", "--time", *more, "--fork", "--kill-child"]
        keeper = subprocess.Popen(
            [*start, *kinds, sys.executable, __file__, name, self._hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(keeper)  # closes its input, which it waits for, and then waits for its end
        return Machine(name, keeper, user_pid)

    def cut(self):
        """Pull the cable out."""
        self.one.run("ip", "link", "set", "cable", "down")

    def __exit__(self, *_):
        self._stack.close()


def keep(name, hosts):
    socket.sethostname(name)
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    print(os.getpid(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    keep(*sys.argv[1:])
