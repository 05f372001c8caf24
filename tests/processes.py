"""What tests that start commands and ranks share."""

import os

import psutil

from gpt_parallel.launch import fork_server


def environment(**changes):
    """The user's environment without pytest's own variables: inside a pytest-xdist worker nothing would be timed."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | changes


def ranks_alive():
    """Rank processes that this test process started."""
    server = fork_server._current
    children = psutil.Process().children(recursive=True)
    return [
        child
        for child in children
        if (server is None or child.pid != server.pid) and "gpt_parallel.engine" in " ".join(child.cmdline())
    ]
