"""Cases are timed one after another, or not at all."""

import pytest

from gpt_parallel.pytest_plugin import refuse_parallel_timing

# `pytest benchmarks` is the main job; these answer other questions, and run when they are named.
collect_ignore = ["test_gates.py", "test_reports.py"]


def pytest_configure(config: pytest.Config) -> None:
    refuse_parallel_timing(config)
