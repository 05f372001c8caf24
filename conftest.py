"""Shared by tests and benchmarks."""

pytest_plugins = ["pytester"]
