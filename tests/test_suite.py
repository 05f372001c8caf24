"""What cases of a session share."""

import pytest

from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.settings import make_settings
from gpt_parallel.suite import Suite


def test_a_reference_that_failed_is_not_tried_again(monkeypatch):
    suite = Suite(make_settings("smoke", {"device": "cpu"}))
    launched = []

    def fail(job):
        launched.append(job)
        raise LaunchError("out of luck")

    monkeypatch.setattr(suite.runner, "_launch_single", fail)
    for num_gpus in (1, 2):
        with pytest.raises(LaunchError, match="out of luck"):
            suite.run(suite.spec("pure_data_parallel", num_gpus))

    assert len(launched) == 1


@pytest.mark.parametrize(
    ("line", "told"), [('{"prompt_ids": [1, 2]}', "given token ids"), ('{"prompt": "a"}', "bytes as token ids")]
)
def test_the_caption_says_what_prompts_were(tmp_path, line, told):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(line)
    suite = Suite(make_settings("smoke", {"device": "cpu", "prompts": str(prompts)}))

    assert suite.workload.source == f"p.jsonl, {told}"
