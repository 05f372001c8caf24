"""What tests that start ranks share."""

import psutil
import pytest

from gpt_parallel.launch import fork_server, local
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite
from tests import mutants


@pytest.fixture
def make_suite():
    """make_suite(**settings): a small one on the CPU, without verification."""
    small = {"num_iterations": 2, "device": "cpu", "verify": False}
    return lambda **settings: Suite(make_settings("smoke", small | settings))


@pytest.fixture
def suite(make_suite):
    return make_suite()


@pytest.fixture
def mutate(monkeypatch):
    def mutate(mutant):
        monkeypatch.setattr(local, "WORKER", "tests.mutants")
        monkeypatch.setenv(mutants.VARIABLE, mutant.__name__)

    return mutate


@pytest.fixture
def server_pid():
    return lambda: fork_server._current.pid


@pytest.fixture
def ranks_alive(server_pid):
    """ranks_alive(): rank processes that this test process started."""

    def find():
        children = psutil.Process().children(recursive=True)
        return [c for c in children if c.pid != server_pid() and "gpt_parallel.engine" in " ".join(c.cmdline())]

    return find
