"""This engine beside others on one device: run `pytest benchmarks/test_baselines.py`, with `pip install -e ".[peers]"`.

The same weights, requests, number type and core; the engines stay loaded and take turns, round by round, so that a
busy machine slows all of them. Every engine's tokens are held against the reference. The figures stand in
docs/performance.md.

`--engine-deadline SECONDS` (300 unless given) is how long an engine may take for any answer. The first one has most to
do: loading, compiling, one pass over all requests. An engine that misses it is stopped and its row skipped, saying so;
the others are measured as if it had not been there.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from turns import Engine, EngineError, TooSlowError, take_turns

from gpt_parallel.launch.fork_server import server_environment
from gpt_parallel.schema.result import Diagnostics, Generated, RankPlace, RankReport, TokenRecord
from gpt_parallel.schema.run import Job, JobKind

PEERS = Path(__file__).with_name("peers.py")
STATIC = "transformers static + compile"
ENGINES = {"gpt_parallel": "torch", "transformers": "transformers", "ctranslate2": "ctranslate2"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
NUM_ROUNDS = 7


@pytest.fixture(scope="module")
def measured(request):
    """What `take_turns` found of every engine, by name, made at the first call and kept."""
    kept = {}

    def measure(spec, directory):
        if kept:
            return kept
        job_file, checkpoint = directory / "job.json", directory / "model"
        job_file.write_text(Job(kind=JobKind.GENERATE, spec=spec).model_dump_json())
        if spec.model.weights == "checkpoint":
            checkpoint = Path(spec.model.directory)
        else:
            subprocess.run(
                [sys.executable, str(PEERS), "checkpoint", str(job_file), str(checkpoint), "any"], check=True
            )
        core = str(min(os.sched_getaffinity(0))) if spec.execution.device == "cpu" else "any"
        names = dict(ENGINES)
        if spec.execution.device == "cuda":
            names[STATIC] = "transformers"
        engines = [
            Engine(
                name,
                [sys.executable, str(PEERS), name, str(job_file), str(checkpoint), core],
                directory / f"{name}.log",
                request.config.getoption("--engine-deadline"),
                {**server_environment(), **ENVIRONMENT},  # huge pages for all of them
            )
            for name, package in names.items()
            if importlib.util.find_spec(package)
        ]
        kept.update(take_turns(engines, NUM_ROUNDS))
        return kept

    return measure


@pytest.mark.benchmark(group="baselines")
@pytest.mark.parametrize("engine", [*ENGINES, STATIC])
def test_baseline(gpt_suite, gpt_record, measured, engine, tmp_path_factory):
    spec = gpt_suite.spec("pure_data_parallel", 1)
    if engine == STATIC and spec.execution.device == "cpu":
        pytest.skip("compiled kernels are for GPUs")

    def launch():
        engines = measured(spec, tmp_path_factory.mktemp("baselines"))
        if engine not in engines:
            pytest.skip('not installed: pip install -e ".[peers]"')
        if isinstance(found := engines[engine], TooSlowError):
            pytest.skip(str(found))
        if isinstance(found, EngineError):
            pytest.fail(str(found), pytrace=False)
        tokens, run = found
        report = RankReport(
            place=RankPlace(device_name=run.device_name, torch_version=run.torch),
            generated=Generated(
                rounds=tuple(run.rounds),
                records=tuple(TokenRecord(request_id=key, tokens=own) for key, own in sorted(tokens.items())),
            ),
            diagnostics=Diagnostics(peak_memory_bytes=run.peak),
        )
        named = spec.model_copy(update={"engine": engine, "strategy": engine})
        return [gpt_suite.result_of_peer(named, report)]

    gpt_record(launch, NUM_ROUNDS)
