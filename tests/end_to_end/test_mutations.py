"""Verification catches what can go wrong in a parallel engine, and a wrong run leaves no number."""

import json

import pytest

from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.summarise import summarise
from gpt_parallel.bench.verifier import VerificationError
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.report.tables import render_table
from tests.support import mutants, warm
from tests.support.paths import ROOT
from tests.support.processes import environment


@pytest.fixture
def make_suite(make_tiny_checkpoint, tmp_path):
    def make(dtype="float32", **settings):
        directory = make_tiny_checkpoint(tmp_path / "model", n_layer=4, n_head=4, head_size=16, vocab_size=211)
        given = {"model": str(directory), "prompts": "random", "num_samples": 4, "prompt_tokens": 12, "max_length": 6}
        return Suite(
            make_settings("smoke", {**given, "num_iterations": 2, "device": "cpu", "dtype": dtype, **settings})
        )

    return make


@pytest.fixture
def suite(make_suite):
    return make_suite()


WRONG = [
    (mutants.swap_head_shards, "tensor_data_hybrid"),
    (mutants.add_bias_on_every_rank, "tensor_data_hybrid"),
    (mutants.share_lane_caches, "pipeline_data_hybrid"),
    (mutants.skip_a_stage, "pipeline_data_hybrid"),
]


@pytest.mark.parametrize(("mutant", "strategy"), WRONG)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_engine_is_a_mismatch(make_suite, monkeypatch, mutant, strategy, dtype):
    suite = make_suite(dtype)
    mutants.mutate(monkeypatch, mutant)

    with pytest.raises(VerificationError, match="mismatch with the single-device reference") as failure:
        suite.run(suite.spec(strategy, 2), timed=False)

    assert failure.value.verification.status == "mismatch"


@pytest.mark.parametrize(("mutant", "strategy"), WRONG)
def test_the_smoke_model_shows_errors_in_bfloat16(monkeypatch, mutant, strategy):
    """Its random weights must weigh enough for that."""
    suite = Suite(make_settings("smoke", {"dtype": "bfloat16", "device": "cpu"}))
    assert suite.run(suite.spec(strategy, 2), timed=False).verification.passed
    mutants.mutate(monkeypatch, mutant)

    with pytest.raises(VerificationError):
        suite.run(suite.spec(strategy, 2), timed=False)


def test_a_timed_round_with_other_tokens_is_a_mismatch(suite, monkeypatch):
    mutants.mutate(monkeypatch, mutants.change_a_timed_round)

    with pytest.raises(VerificationError) as failure:
        suite.run(suite.spec("pure_data_parallel", 1))

    assert "round 2, rank 0: request 0, new token 0: got" in str(failure.value)
    assert failure.value.verification.repeatable is False


@pytest.mark.parametrize("strategy", ["pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid"])
def test_a_mistake_in_one_timed_round_is_a_mismatch(suite, monkeypatch, strategy):
    mutants.mutate(monkeypatch, mutants.attend_to_one_key_fewer_in_a_timed_round)

    with pytest.raises(VerificationError) as failure:
        suite.run(suite.spec(strategy, 2))

    assert all(problem.startswith("round 2, rank ") for problem in failure.value.verification.problems)


@pytest.fixture
def twins(make_tiny_checkpoint, tmp_path):
    """A checkpoint whose vocabulary ids 2n and 2n + 1 have the same weights: which one is chosen is chance."""
    from safetensors.torch import load_file, save_file

    directory = make_tiny_checkpoint(tmp_path / "twins", n_layer=2, n_head=4, head_size=16, vocab_size=64)
    weights = load_file(directory / "model.safetensors")
    table = weights["transformer.wte.weight"]
    table[1::2] = table[::2]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("judge", ["transformers", "engine"])
@pytest.mark.parametrize("num_gpus", [1, 2])
def test_a_round_that_does_not_repeat_but_is_right_is_a_tie(make_suite, twins, monkeypatch, judge, num_gpus):
    mutants.mutate(monkeypatch, mutants.choose_the_twin_in_a_timed_round)
    suite = make_suite(model=str(twins), judge=judge)

    result = suite.run(suite.spec("pure_data_parallel", num_gpus))

    assert (result.verification.status, result.verification.repeatable) == ("tie", False)
    assert {tie.round for tie in result.verification.ties} == {2}
    assert len(result.verification.ties) == 4
    assert result.figures.throughput_tok_s > 0
    shown = render_table([summarise([result])])
    assert "tie‡" in shown
    assert "‡ timed rounds chose other tokens than the recorded pass, all right within rounding" in shown


def test_a_mismatch_fails_the_case_and_saves_no_timing(tmp_path):
    """Under pytest: the two layouts without a tensor group are right and saved, the two with one are not."""
    saved = tmp_path / "saved.json"
    mutant = {mutants.VARIABLE: mutants.add_bias_on_every_rank.__name__, "PYTHONPATH": str(ROOT)}

    done = warm.run(
        [
            *(warm.PYTEST, "benchmarks", "-k", "2gpu", "--gpt-preset", "smoke", "--gpt-no-report"),
            *("--gpt-num-iterations", "1", "--benchmark-json", str(saved)),
            *("-p", "tests.support.mutants", "-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        env=environment(**mutant),
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert "tensor_data_hybrid-2gpu: mismatch with the single-device reference" in done.stdout
    assert "2 failed, 2 passed" in done.stdout
    names = [bench["name"] for bench in json.loads(saved.read_text())["benchmarks"]]
    assert sorted(names) == [
        "test_generation[pipeline_data_hybrid-2gpu]",
        "test_generation[pure_data_parallel-2gpu]",
    ]
