"""Two ranks talk, for real."""

import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from gpt_parallel.bench.suite import Suite
from gpt_parallel.cli import app
from gpt_parallel.cli.doctor import connectivity
from gpt_parallel.engine.comm import probe as engine
from gpt_parallel.inputs.meshes import CUSTOM
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.launch import devices
from gpt_parallel.launch.failure import LaunchError
from gpt_parallel.schema.result import CollectiveProbe
from gpt_parallel.schema.run import JobKind
from tests.support.factories import rank_report


@pytest.mark.parametrize("backend", ["auto", "gloo"])
def test_two_ranks_time_each_collective(backend):
    found = connectivity.run_self_test(make_settings("smoke", {"device": "cpu", "backend": backend}))

    assert found.problem is None
    assert found.backend in (("gloo",) if backend == "gloo" else ("shm", "gloo"))
    timed = {(probe.op, probe.bytes): probe.seconds for probe in found.probes}
    assert set(timed) == {
        (op, size) for op in ("all_reduce", "gather", "send_receive") for size in (4 * 768 * 4, 2048 * 1024 * 4)
    }
    assert all(seconds > 0 for seconds in timed.values())


def test_the_median_of_each_size_is_told(monkeypatch):
    """By a clock that a sum moves on by a second per mebibyte, and every fourth by a thousand more."""
    now = 0.0
    sums = 0

    class Collectives:
        def all_reduce(self, x):
            nonlocal now, sums
            sums += 1
            now += x.nbytes / 2**20 + (1000 if sums % 4 == 0 else 0)
            return 3 * x

        def gather(self, x):
            return torch.cat((x, 2 * x))

        def barrier(self):
            nonlocal now
            now += 5000

        def close(self):
            pass

    monkeypatch.setattr(engine, "connect", lambda *_: Collectives())
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now)
    spec = Suite(make_settings("smoke", {"device": "cpu", "tensor_parallel_size": 2})).spec(CUSTOM, 2)

    report = engine.time_collectives(spec, 0, torch.device("cpu"), None, SimpleNamespace(enter=lambda phase: None))

    assert [(probe.op, probe.bytes, probe.seconds) for probe in report.probed] == [
        ("all_reduce", 12288, 12288 / 2**20),
        ("all_reduce", 8388608, 8),
        ("gather", 12288, 0),
        ("gather", 8388608, 0),
    ]


def test_the_slowest_rank_counts(monkeypatch):
    def launch(job):
        times = [{"a": 1.0, "b": 4.0}, {"a": 2.0, "b": 3.0}]
        return [
            rank_report(rank, probes=tuple(CollectiveProbe(op=op, bytes=8, seconds=s) for op, s in seconds.items()))
            for rank, seconds in enumerate(times)
        ]

    monkeypatch.setattr(connectivity, "launch", launch)

    found = connectivity.run_self_test(make_settings("smoke", {"device": "cpu"}))

    assert [(probe.op, probe.seconds) for probe in found.probes[:2]] == [("a", 2.0), ("b", 4.0)]


def test_wrong_numbers_are_found(monkeypatch):
    monkeypatch.setattr("gpt_parallel.launch.local.WORKER", "tests.support.mutants")
    monkeypatch.setenv("GPT_PARALLEL_TEST_MUTANT", "deliver_wrong_sums")

    found = connectivity.run_self_test(make_settings("smoke", {"device": "cpu"}))

    assert "all_reduce delivered (4.0, 4.0) where (3.0, 3.0) was due" in found.problem


def test_a_rank_that_hangs_is_a_problem_with_a_deadline(monkeypatch):
    def launch(job):
        assert (job.kind, job.spec.execution.timeout_s) == (JobKind.SELF_TEST, connectivity.TIMEOUT_S)
        raise LaunchError("the run did not finish within 60 s: rank 0 was in phase 'connect'")

    monkeypatch.setattr(connectivity, "launch", launch)

    found = connectivity.run_self_test(make_settings("smoke", {"device": "cpu"}))

    assert "did not finish within 60 s" in found.problem


@pytest.mark.parametrize(("count", "backend"), [(1, "gloo"), (2, "nccl")])
def test_one_gpu_is_shared_and_two_use_nccl(monkeypatch, count, backend):
    gpus = tuple(devices.Gpu("NVIDIA H100", (9, 0)) for _ in range(count))
    monkeypatch.setattr("gpt_parallel.inputs.execution.cuda_devices", lambda: gpus)
    monkeypatch.setattr(connectivity, "cuda_devices", lambda: gpus)
    jobs = []
    monkeypatch.setattr(connectivity, "launch", lambda job: jobs.append(job) or ())

    found = connectivity.run_self_test(make_settings("smoke", {}))

    assert (found.device, found.backend, found.problem) == ("cuda", backend, None)
    assert [str(job.spec.mesh) for job in jobs] == ["tp2", "pp2"]


def doctor(*arguments):
    return CliRunner().invoke(app, ["doctor", "--device", "cpu", "--preset", "smoke", *map(str, arguments)])


def test_the_command_is_green_on_a_cpu_machine(tmp_path):
    done = doctor("--output-dir", tmp_path)

    assert done.exit_code == 0, done.output
    for word in ("Python", "torch", "CUDA", "cores", "memory", "threads", "shared memory", "model", "self-test"):
        assert word in done.output
    assert "FAIL" not in done.output
    assert "pure_data_parallel     4  runs" in done.output
    assert "gpt2-xl" in done.output
    assert done.output.rstrip().endswith("can run here.")


def test_json_has_it_all(tmp_path):
    done = doctor("--json", "--output-dir", tmp_path, "--no-self-test")

    document = json.loads(done.stdout)
    assert document["can_run"] is True
    assert document["self_test"] is None
    assert len(document["cases"]) == 9
    assert document["facts"]["output"]["path"] == str(tmp_path)
    assert {finding["level"] for finding in document["findings"]} <= {"ok", "note", "warning"}


def test_what_cannot_run_is_exit_code_1(tmp_path):
    (tmp_path / "file").touch()

    done = doctor("--no-self-test", "--output-dir", tmp_path / "file" / "out", "--model", "nosuch")

    assert done.exit_code == 1
    assert "FAIL  output" in done.output
    assert "→ choose another --output-dir" in done.output
    assert "cannot run here: 2 problem(s), marked FAIL above." in done.output
    assert json.loads(doctor("--json", "--no-self-test", "--model", "nosuch").stdout)["can_run"] is False


def test_wrong_usage_is_exit_code_2():
    assert doctor("--batch-size", "0").exit_code == 2
