"""Who judges, when, and what is kept of it."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
from safetensors.torch import load_file, save_file

from gpt_parallel.base.errors import SpecError
from gpt_parallel.bench import verdicts
from gpt_parallel.bench.runner import Runner
from gpt_parallel.bench.suite import Suite
from gpt_parallel.bench.verifier import VerificationError
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import local
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.result import TokenRecord
from gpt_parallel.schema.run import JobKind, RequestTokens
from tests.support import mutants
from tests.support.factories import rank_report, run_spec, token_record, token_score
from tests.support.paths import ROOT
from tests.support.processes import environment

SMOKE = {"device": "cpu", "num_iterations": 2}


@pytest.fixture
def cache(monkeypatch, tmp_path):
    directory = tmp_path / "cache"
    monkeypatch.setenv("GPT_PARALLEL_CACHE", str(directory))
    return directory


@pytest.fixture
def launched(monkeypatch):
    """The kinds of jobs that a single device is given, in order."""
    kinds = []
    launch = Runner._launch_single

    def watched(self, job, name):
        kinds.append(job.kind.value)
        return launch(self, job, name)

    monkeypatch.setattr(Runner, "_launch_single", watched)
    return kinds


def smoke(**given):
    return Suite(make_settings("smoke", {**SMOKE, **given}))


def test_the_judge_is_asked_once_for_all_cases_and_sessions(cache, launched):
    for _ in range(2):
        suite = smoke()
        for num_gpus in (1, 2):
            verification = suite.run(suite.spec("pure_data_parallel", num_gpus)).verification
            assert verification.judge == verdicts.judge_name()
            assert verification.repeatable is True

    assert launched == ["generate", "judge", "generate"]
    assert len(list(cache.rglob("*.json"))) == 1


def test_the_engine_alone_is_its_own_judge_where_asked(cache, launched):
    suite = smoke(judge="engine")

    assert suite.run(suite.spec("pure_data_parallel", 1)).verification.judge == "engine"
    assert launched == ["generate"]
    assert not cache.exists()


def test_what_the_judge_refutes_is_said_in_every_case_and_not_kept(cache, launched, monkeypatch):
    mutants.mutate(monkeypatch, mutants.normalise_with_ten_epsilon)
    suite = smoke()

    for num_gpus in (1, 2):
        with pytest.raises(VerificationError) as failure:
            suite.run(suite.spec("pure_data_parallel", num_gpus))
        told = f"pure_data_parallel-{num_gpus}gpu: its single-device reference is not what transformers 5."
        assert str(failure.value).startswith(told)
        assert failure.value.verification.problems[0].startswith("request 0, new token 0: log-probability ")

    assert launched == ["generate", "judge"]
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_only_costs_time(monkeypatch, tmp_path, launched):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GPT_PARALLEL_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        suite = smoke()
        assert suite.run(suite.spec("pure_data_parallel", 1), timed=False).verification.passed

    assert launched == ["generate", "judge"] * 2


def test_a_judge_that_fails_is_named_with_what_does_without_it(cache, monkeypatch):
    monkeypatch.setattr(local, "JUDGE", "no.such.module")
    suite = smoke()

    with pytest.raises(LaunchError, match=r"^the judge's pass by transformers \(judge 'engine' skips it\): "):
        suite.run(suite.spec("pure_data_parallel", 1))


def test_a_judge_in_a_broken_environment_fails_before_anything_is_timed(cache):
    """transformers that cannot be imported, as after a half-made upgrade."""
    broken = cache.parent / "transformers"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('half an upgrade')")

    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "benchmarks", "-k", "1gpu", "--gpt-preset", "smoke"),
            *("--gpt-no-report", "-p", "no:cacheprovider"),
        ],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(broken.parent), GPT_PARALLEL_CACHE=str(cache)),
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 1, done.stdout + done.stderr
    assert "half an upgrade" in done.stdout
    assert "judge 'engine' skips it" in done.stdout


def test_a_verdict_is_of_all_that_it_depends_on(tiny_checkpoint, monkeypatch):
    directory = tiny_checkpoint()
    given = {"model": str(directory), "prompts": "random", "num_samples": 2, "prompt_tokens": 6, "max_length": 3}

    def digest(record=None, **changes):
        suite = smoke(**{**given, **changes})
        return verdicts.digest_of(suite.spec("pure_data_parallel", 1), {0: record or token_record()})

    first = digest()
    assert digest() == first
    assert digest(num_iterations=5, batch_size=1) == first, "neither changes what one device should say"
    others = {
        digest(token_record(tokens=(1, 2, 4))),
        digest(token_record(logprobs=(-1.0, -1.0, -1.1))),
        digest(temperature=0.5),
        digest(seed=1),
        digest(dtype="bfloat16"),
        digest(max_length=4),
    }
    (directory / "model.safetensors").write_bytes((directory / "model.safetensors").read_bytes()[:-1] + b"\x3d")
    others.add(digest())
    monkeypatch.setattr(verdicts, "version", lambda name: "99.0")
    others.add(digest())
    assert len(others - {first}) == 8


def test_the_oldest_of_many_verdicts_go(cache, monkeypatch):
    monkeypatch.setattr(verdicts, "_MAX_KEPT", 3)
    for index in range(5):
        verdicts.keep(f"{index:064}")

    assert sum(verdicts.is_kept(f"{index:064}") for index in range(5)) == 3
    assert verdicts.is_kept(f"{4:064}")
    assert json.loads(next(cache.rglob("*.json")).read_text()) == {"judge": verdicts.judge_name(), "verdict": "proved"}


def test_the_cache_lies_where_users_expect_it(monkeypatch, tmp_path):
    monkeypatch.delenv("GPT_PARALLEL_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert verdicts.directory() == tmp_path / "gpt_parallel"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert verdicts.directory() == tmp_path / "me" / ".cache" / "gpt_parallel"


@pytest.mark.parametrize("judge", ["transformers", "engine"])
def test_tokens_that_differ_are_scored_by_the_judge(cache, launched, judge):
    suite = smoke(judge=judge, num_samples=2)
    spec = suite.spec("pure_data_parallel", 1)
    kind = JobKind.SCORE if judge == "engine" else JobKind.JUDGE
    right = {key: record.tokens for key, record in suite.verifier.reference(spec).items()}
    wrong = {**right, 1: (right[1][0] ^ 1, *right[1][1:])}
    records = tuple(TokenRecord(request_id=key, tokens=tokens) for key, tokens in wrong.items())
    launched.clear()

    with pytest.raises(VerificationError, match=r"request 1, new token 0: got .*, which scores .* below the best"):
        suite.verifier.verify(spec, [rank_report(records=records)])

    assert launched == [kind.value]
    twice = [RequestTokens(request_id=key, tokens=tokens) for tokens in (wrong[1], right[1]) for key in (1,)]
    scores = suite.runner.score(spec, twice, kind)
    assert scores[0].margins[0] > 1e-3
    assert max(scores[1].margins) < 1e-5


def test_a_reference_is_not_judged_by_its_own_engine(monkeypatch):
    """`prove` is for scores of another implementation; with the engine's own it could not fail."""
    suite = smoke(judge="engine")
    monkeypatch.setattr(suite.runner, "generate_alone", lambda spec: ())
    monkeypatch.setattr(suite.runner, "score", lambda *_: [token_score()])

    assert suite.verifier.reference(run_spec()) == {}


def test_transformers_that_is_not_installed_is_a_usage_error(monkeypatch):
    def version(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(verdicts, "version", version)
    suite = smoke()  # which may never verify anything

    with pytest.raises(SpecError, match=r"transformers, .* is not installed: pip install .* or use judge 'engine'"):
        suite.run(suite.spec("pure_data_parallel", 1))
    assert smoke(judge="engine").verifier.judge == "engine"


@pytest.mark.parametrize("content", ["garbage{", '{"judge": "transformers 1.0", "verdict": "proved"}', '"proved"', ""])
def test_only_a_whole_verdict_of_this_judge_counts(cache, content):
    verdicts.keep("0" * 64)
    assert verdicts.is_kept("0" * 64)
    next(cache.rglob("*.json")).write_text(content)

    assert not verdicts.is_kept("0" * 64)


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GPT_PARALLEL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(verdicts.Path, "home", home)

    verdicts.keep("0" * 64)
    assert not verdicts.is_kept("0" * 64)


def test_a_reference_is_kept_while_its_judge_is_tried_again(cache, launched, monkeypatch):
    suite = smoke()
    spec = suite.spec("pure_data_parallel", 1)
    with monkeypatch.context() as patch:
        patch.setattr(local, "JUDGE", "no.such.module")
        with pytest.raises(LaunchError):
            suite.run(spec)

    assert suite.run(spec, timed=False).verification.passed
    assert launched == ["generate", "judge", "judge"]


@pytest.mark.parametrize(("dtype", "offset"), [("bfloat16", -150.0), ("float16", -150.0), ("float32", -150.0)])
@pytest.mark.parametrize("spread", [1, 4])
def test_logits_with_a_large_offset_are_no_mismatch(make_tiny_checkpoint, tmp_path, dtype, offset, spread):
    """As a trained GPT-2's, which half precision rounds to whole numbers; the judge has them in float32."""
    directory = make_tiny_checkpoint(tmp_path / "model", n_layer=4, n_head=5, head_size=32, vocab_size=512)
    weights = load_file(directory / "model.safetensors")
    table, bias = weights["transformer.wte.weight"], weights["transformer.ln_f.bias"]
    table[:, 0] = offset / 8  # times a bias of 8 in the last norm, and no weight
    weights["transformer.ln_f.weight"] *= spread
    weights["transformer.ln_f.weight"][0] = 0.0
    bias[0] = 8.0
    weights["transformer.h.0.ln_1.weight"][0] = 0.0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    given = {"model": str(directory), "prompts": "random", "num_samples": 8, "prompt_tokens": 16, "max_length": 8}
    suite = smoke(dtype=dtype, **given)

    for strategy in ("pure_data_parallel", "tensor_data_hybrid", "pipeline_data_hybrid"):
        assert suite.run(suite.spec(strategy, 2), timed=False).verification.passed
