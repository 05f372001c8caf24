"""What tests that start commands and ranks share."""

import os
import secrets
import signal
from contextlib import suppress

import psutil

from gpt_parallel.launch import fork_server
from tests.support.warm import RANKS

TITLE = "gpt_parallel: "  # how the processes of ranks and of their server show in ps
MARK = "GPT_PARALLEL_TEST_PROCESS"  # in the environment of all that this process starts
os.environ[MARK] = secrets.token_hex(8)


def environment(**changes):
    """The user's environment without pytest's own variables: inside a pytest-xdist worker nothing would be timed.

    And without the plugins of hypothesis and anyio, which users need not have: importing them takes as long as all the
    rest.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return kept | {"PYTEST_ADDOPTS": "-p no:hypothesispytest -p no:anyio"} | changes


def heed_ctrl_c():
    """For Popen's `preexec_fn`: a script's background job ignores Ctrl-C, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def title(process):
    """What ps, top and nvidia-smi show of a process."""
    return " ".join(process.cmdline()).rstrip()


def ranks_alive():
    """Rank processes that come of this test process, even if who started them is gone."""
    server = fork_server._current
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_ours = process.environ().get(MARK) == os.environ[MARK]
            shown = title(process)
            is_rank = shown.startswith(TITLE) or "gpt_parallel.engine" in shown or process.name() == RANKS
            if is_ours and is_rank and (server is None or process.pid != server.pid):
                found.append(process)
    return found
