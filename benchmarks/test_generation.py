"""The main job: the cases that `gpt-parallel bench` runs too, from an installed package."""

from gpt_parallel.pytest_plugin.benchmarks.test_generation import test_generation

__all__ = ["test_generation"]
