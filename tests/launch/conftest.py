"""What tests that start ranks share."""

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import fork_server, local
from gpt_parallel.schema.fault import FaultSpec
from tests.support import mutants, processes


@pytest.fixture(scope="module")
def users_server():
    """For tests of what ranks are forked from, and of what it has imported: it is as users have it."""
    fork_server.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fork_server, "SERVER", processes.USERS_SERVER)
        yield
    fork_server.stop()


@pytest.fixture
def make_suite():
    """make_suite(fault, **settings): a small one on the CPU, without verification."""
    small = {"num_iterations": 2, "device": "cpu", "verify": False}
    return lambda fault=None, **settings: Suite(
        make_settings("smoke", small | settings), fault=FaultSpec.parse(fault) if fault else None
    )


@pytest.fixture
def suite(make_suite):
    return make_suite()


@pytest.fixture
def mutate(monkeypatch):
    def mutate(mutant):
        monkeypatch.setattr(local, "WORKER", "tests.support.mutants")
        monkeypatch.setenv(mutants.VARIABLE, mutant.__name__)

    return mutate


@pytest.fixture
def server_pid():
    return lambda: fork_server._current.pid


@pytest.fixture
def ranks_alive():
    return processes.ranks_alive
