"""What pytest loads at every start: hooks and options, cases, the fixtures that run one, what a session keeps."""

from gpt_parallel.pytest_plugin.state import refuse_parallel_timing

__all__ = ["refuse_parallel_timing"]
