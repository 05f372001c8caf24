"""The main job: every strategy on every device count, each a real distributed run, verified and timed."""

import pytest


@pytest.mark.benchmark(group="generation")
def test_generation(gpt_case, strategy, num_gpus):
    result = gpt_case(strategy, num_gpus)
    assert len(result.outputs) == len(result.spec.workload.requests)
