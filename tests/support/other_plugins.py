"""A pytest plugin that does what widespread ones do: warns when configured, shuffles, fails once and runs again."""

import warnings

import pytest
from _pytest.runner import runtestprotocol
from pytest_benchmark.fixture import BenchmarkFixture

_failed = set()


def pytest_configure(config):
    warnings.warn("an option of this plugin is unset", DeprecationWarning, stacklevel=1)
    if config.getoption("other_codspeed"):
        config.pluginmanager.register(ForeignBenchmark())


def pytest_addoption(parser):
    parser.addoption("--other-codspeed", action="store_true")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    warnings.warn("something is deprecated", DeprecationWarning, stacklevel=1)
    items.reverse()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    called = yield
    if "tensor" in pyfuncitem.name and pyfuncitem.name not in _failed:
        _failed.add(pyfuncitem.name)
        raise AssertionError("it fails once")
    return called


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    """As pytest-rerunfailures does: a test that fails runs again, and only its last reports are logged."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    if any(report.failed for report in reports):
        item._initrequest()
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


class Foreign(BenchmarkFixture):
    """As pytest-codspeed's, of pytest-benchmark's type but with none of its attributes."""

    def __init__(self):
        pass


class ForeignBenchmark:
    @pytest.fixture
    def benchmark(self):
        return Foreign()
