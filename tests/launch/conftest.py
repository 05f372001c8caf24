"""What tests that start ranks share."""

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import fork_server, local
from gpt_parallel.schema.fault import FaultSpec
from tests.support import mutants, processes


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
