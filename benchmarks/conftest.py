"""Cases are timed one after another, or not at all."""

from pathlib import Path

import pytest

from gpt_parallel.pytest_plugin import refuse_parallel_timing

# `pytest benchmarks` is the main job; these answer other questions, and run when they are named.
collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_generation.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine-deadline",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="test_baselines.py: leave out an engine that takes longer to load, compile and generate once",
    )


def pytest_configure(config: pytest.Config) -> None:
    refuse_parallel_timing(config)
