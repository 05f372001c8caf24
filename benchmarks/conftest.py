"""Cases are timed one after another, or not at all."""

import pytest

from gpt_parallel.pytest_plugin import refuse_parallel_timing


def pytest_configure(config: pytest.Config) -> None:
    refuse_parallel_timing(config)
