import pytest


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """One for all examples of a module's tests."""
    return tmp_path_factory.mktemp("fuzz")
