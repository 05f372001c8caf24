"""Other engines beside ours: one that is late or fails costs its own row, and a compiled one compiles once."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import psutil
import pytest

from gpt_parallel.schema.run import ExecutionSpec, Request, WorkloadSpec
from tests.support import warm
from tests.support.factories import run_spec
from tests.support.paths import ROOT
from tests.support.processes import environment

BENCHMARKS = ROOT / "benchmarks"
ANSWERS = {
    "tokens": {"tokens": {"0": [1, 2]}, "torch": "2.13.0", "device_name": "NVIDIA H100"},
    "round": {"round": {"seconds": 0.5, "timelines": []}, "peak": 7},
}
ENGINE = f"""
import json, sys
for number, line in enumerate(sys.stdin):
    act(number)
    print(json.dumps({ANSWERS!r}[line.strip()]), flush=True)
"""
ACTS = {
    "well": "act = lambda number: None",
    "mute": "act = lambda number: sys.stdin.read()",
    "half": "act = lambda number: (print('{', end='', flush=True), sys.stdin.read())",
    "late": "act = lambda number: number == 2 and sys.stdin.read()",
    "dead": "act = lambda number: sys.exit('no such kernel')",
    "absent": "raise SystemExit('no such engine')",
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


turns, peers = load("turns"), load("peers")


class Impatient(turns.Engine):
    """Has little time for its first timed round only."""

    num_rounds = 0

    def run_round(self):
        self.num_rounds += 1
        self._deadline_s = 0.1 if self.num_rounds == 2 else 60.0
        super().run_round()


@pytest.fixture
def take(tmp_path):
    """take(names) has engines that behave so take three turns; those that are to be late have little time."""

    def take(*names):
        engines = []
        for name in names:
            command = [sys.executable, "-c", f"import sys\n{ACTS[name]}\n{ENGINE}"]
            kind = Impatient if name == "late" else turns.Engine
            deadline_s = 0.1 if name in ("mute", "half") else 60.0
            engines.append(kind(name, command, tmp_path / f"{name}.log", deadline_s))
        found = turns.take_turns(engines, 3)
        assert not any(psutil.pid_exists(engine._process.pid) for engine in engines)
        return found

    return take


@pytest.mark.parametrize("name", ["mute", "half"])
def test_an_engine_that_misses_its_deadline_is_left_out_and_the_others_are_measured(take, name):
    found = take(name, "well")

    assert isinstance(found[name], turns.TooSlowError)
    assert str(found[name]) == (f"{name} did not load, compile and generate once within 0.1 s (--engine-deadline)")
    tokens, engine = found["well"]
    assert (tokens, engine.device_name, engine.torch, engine.peak) == ({0: (1, 2)}, "NVIDIA H100", "2.13.0", 7)
    assert [one.seconds for one in engine.rounds] == [0.5] * 3


def test_an_engine_that_is_late_in_a_round_has_no_row(take):
    found = take("well", "late")

    assert str(found["late"]) == "late did not generate once more within 0.1 s (--engine-deadline)"
    assert len(found["well"][1].rounds) == 3


@pytest.mark.parametrize(("name", "printed"), [("dead", "no such kernel"), ("absent", "no such engine")])
def test_an_engine_that_ends_fails_alone_and_with_what_it_printed(take, name, printed):
    found = take(name, "well")

    assert not isinstance(found[name], turns.TooSlowError)
    assert str(found[name]) == f"{name} ended without an answer:\n{printed}\n"
    assert len(found["well"][1].rounds) == 3


def test_rows_of_engines_that_were_late_are_skipped_with_the_time(tmp_path):
    done = warm.run(
        [
            *(warm.PYTEST, str(BENCHMARKS / "test_baselines.py"), "-p", "no:cacheprovider", "-rs"),
            *("--gpt-device", "cpu", "--gpt-preset", "smoke", "--gpt-report", str(tmp_path)),
            *("-k", "not ctranslate2", "--engine-deadline", "0.001"),
        ],
        cwd=BENCHMARKS.parent,
        env=environment(),
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 skipped" in done.stdout
    for name in ("gpt_parallel", "transformers"):
        assert f"{name} did not load, compile and generate once within 0.001 s (--engine-deadline)" in done.stdout


@pytest.fixture
def job():
    """Batches of unequal lengths, the last one with fewer rows."""
    sizes = [(10, 6), (10, 6), (7, 6), (12, 6), (20, 3), (4, 3), (3, 6)]
    requests = tuple(
        Request(request_id=number, prompt_ids=tuple(range(1, 1 + prompt)), max_new_tokens=new)
        for number, (prompt, new) in enumerate(sizes)
    )
    workload = WorkloadSpec(requests=requests, batch_size=2)
    execution = ExecutionSpec(device="cpu", dtype="float32", backend="gloo")
    return SimpleNamespace(spec=run_spec(workload=workload, execution=execution))


def test_a_compiled_engine_compiles_once_for_all_batches_and_rounds(job, tiny_checkpoint):
    import torch
    from transformers import CompileConfig

    class Compiled(peers.TransformersStatic):
        compile_config = CompileConfig(backend="eager", mode=None)

    Compiled.compile_config._compile_all_devices = True
    checkpoint = tiny_checkpoint()
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]

    with torch.inference_mode():
        *_, plain = peers.Transformers(job, checkpoint).run()
        engine = Compiled(job, checkpoint)
        passes = [engine.run() for _ in range(2)]

    for _, timelines, tokens in passes:
        assert json.dumps(tokens()) == json.dumps(plain())
        assert [len(timeline.token_times_s) for timeline in timelines] == [6, 6, 3, 6]
        assert all(timeline.start_s < timeline.token_times_s[0] for timeline in timelines)
    assert counts["unique_graphs"] - before == 1
