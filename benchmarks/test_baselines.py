"""This engine beside others on one device: run `pytest benchmarks/test_baselines.py`, with `pip install -e ".[peers]"`.

The same weights, requests, number type and core; the engines stay loaded and take turns, round by round, so that a
busy machine slows all of them. Every engine's tokens are held against the reference. The figures stand in
docs/performance.md.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_parallel.launch.fork_server import server_environment
from gpt_parallel.result import RankReport, RoundReport
from gpt_parallel.spec import Job, JobKind

PEERS = Path(__file__).with_name("peers.py")
ENGINES = {"gpt_parallel": "torch", "transformers": "transformers", "ctranslate2": "ctranslate2"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
NUM_ROUNDS = 7


class Engine:
    """A loaded engine that runs when told to."""

    def __init__(self, name, job_file, checkpoint, core):
        self.rounds = []
        self.peak = 0
        self._log = job_file.parent / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(PEERS), name, str(job_file), str(checkpoint), core],
                env={**server_environment(), **ENVIRONMENT},  # huge pages for all of them
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def _ask(self, command):
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text(errors="replace")
        return json.loads(answer)

    def generate(self):
        answer = self._ask("tokens")
        self.torch = answer["torch"]
        return {int(key): tuple(tokens) for key, tokens in answer["tokens"].items()}

    def run_round(self):
        answer = self._ask("round")
        self.rounds.append(RoundReport.model_validate(answer["round"]))
        self.peak = answer["peak"]

    def stop(self):
        self._process.kill()
        with self._process:
            pass


@pytest.fixture(scope="module")
def measured():
    """Tokens and rounds of every engine, by name, made at the first call and kept."""
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
            names["transformers static + compile"] = "transformers"
        engines = {
            name: Engine(name, job_file, checkpoint, core)
            for name, package in names.items()
            if importlib.util.find_spec(package)
        }
        try:
            tokens = {name: engine.generate() for name, engine in engines.items()}
            for engine in engines.values():
                engine.run_round()
                engine.rounds.clear()  # warm
            for _ in range(NUM_ROUNDS):
                for engine in engines.values():
                    engine.run_round()
        finally:
            for engine in engines.values():
                engine.stop()
        kept.update({name: (tokens[name], engine) for name, engine in engines.items()})
        return kept

    return measure


@pytest.mark.benchmark(group="baselines")
@pytest.mark.parametrize("engine", [*ENGINES, "transformers static + compile"])
def test_baseline(gpt_suite, gpt_record, measured, engine, tmp_path_factory):
    spec = gpt_suite.spec("pure_data_parallel", 1)
    if engine == "transformers static + compile" and spec.execution.device == "cpu":
        pytest.skip("compiled kernels are for GPUs")

    def launch():
        engines = measured(spec, tmp_path_factory.mktemp("baselines"))
        if engine not in engines:
            pytest.skip('not installed: pip install -e ".[peers]"')
        tokens, run = engines[engine]
        report = RankReport(
            **dict.fromkeys(("rank", "stage", "replica", "shard", "num_heads", "parameter_bytes"), 0),
            layers=(0, spec.model.architecture.n_layer),
            rounds=tuple(run.rounds),
            device_name="CPU" if spec.execution.device == "cpu" else spec.execution.device,
            peak_memory_bytes=run.peak,
            torch_version=run.torch,
        )
        named = spec.model_copy(update={"engine": engine, "strategy": engine})
        return [gpt_suite.result_of_peer(named, report, tokens)]

    gpt_record(launch, NUM_ROUNDS)
