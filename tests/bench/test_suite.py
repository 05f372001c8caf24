"""What cases of a session share."""

from pathlib import Path

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch.failure import LaunchError
from tests.support.factories import rank_report, token_record


def test_a_reference_that_failed_twice_is_not_tried_again(monkeypatch):
    suite = Suite(make_settings("smoke", {"device": "cpu"}))
    launched = []

    def fail(job, name):
        launched.append(job)
        raise LaunchError("out of luck")

    monkeypatch.setattr(suite.runner, "_launch_single", fail)
    for num_gpus in (1, 2, 4):
        with pytest.raises(LaunchError, match="out of luck"):
            suite.run(suite.spec("pure_data_parallel", num_gpus))

    assert len(launched) == 2


def test_a_reference_that_failed_once_is_made_for_the_next_case(monkeypatch):
    suite = Suite(make_settings("smoke", {"device": "cpu", "judge": "engine"}))
    outcomes = [LaunchError("the machine was busy"), (rank_report(records=(token_record(),)),)]

    def launch(job, name):
        outcome = outcomes.pop(0)
        if isinstance(outcome, LaunchError):
            raise outcome
        return outcome

    monkeypatch.setattr(suite.runner, "_launch_single", launch)
    spec = suite.spec("pure_data_parallel", 2)
    with pytest.raises(LaunchError, match="busy"):
        suite.verifier.reference(spec)

    assert suite.verifier.reference(spec) == suite.verifier.reference(spec) == {0: token_record()}
    assert outcomes == []


@pytest.mark.parametrize("error", [LaunchError("killed"), KeyboardInterrupt()])
def test_traces_of_a_run_that_failed_are_redacted_too(monkeypatch, tmp_path, error):
    monkeypatch.setenv("HF_TOKEN", "correct-horse-battery")
    settings = {"device": "cpu", "verify": False, "profile": str(tmp_path)}
    suite = Suite(make_settings("smoke", settings))
    spec = suite.spec("pure_data_parallel", 2)
    directory = Path(spec.execution.profile)

    def run(spec):
        (directory / "rank_0.json").write_text("a correct-horse-battery")
        (directory / ".rank_1.json.0123").write_text("half a correct-horse-battery")
        raise error

    monkeypatch.setattr(suite.runner, "run", run)
    with pytest.raises(type(error)):
        suite.run(spec)

    assert {path.name: path.read_text() for path in directory.iterdir()} == {"rank_0.json": "a ***"}


@pytest.mark.parametrize(
    ("line", "told"), [('{"prompt_ids": [1, 2]}', "given token ids"), ('{"prompt": "a"}', "bytes as token ids")]
)
def test_the_caption_says_what_prompts_were(tmp_path, line, told):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(line)
    suite = Suite(make_settings("smoke", {"device": "cpu", "prompts": str(prompts)}))

    assert suite.workload.source == f"p.jsonl, {told}"
