"""The main job: every strategy on every device count, each a real distributed run, verified and timed."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gpt_parallel.schema.result import RunResult


@pytest.mark.benchmark(group="generation")
def test_generation(gpt_case: "Callable[[str, int], RunResult]", strategy: str, num_gpus: int) -> None:
    result = gpt_case(strategy, num_gpus)
    assert len(result.outputs) == len(result.spec.workload.requests)
