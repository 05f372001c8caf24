"""The pytest plugin: hooks and options, cases, the fixtures that run a case, and the files that a session keeps."""

from gpt_parallel.pytest_plugin.state import refuse_parallel_timing

__all__ = ["refuse_parallel_timing"]
