"""Every way in which a machine may be wrong is told in plain words, with a remedy."""

import pytest

from gpt_parallel.cli.doctor.cases import Feasibility
from gpt_parallel.cli.doctor.checks import check
from gpt_parallel.cli.doctor.facts import DirectoryFacts, DriverFacts, GpuProcess, ModelFacts, SelfTest, TorchFacts
from gpt_parallel.cli.doctor.findings import can_run
from gpt_parallel.inputs.settings import make_settings
from gpt_parallel.schema.result import CollectiveProbe
from tests.cli.doctor.conftest import GIB, gpu

RUNS = (Feasibility(strategy="pure_data_parallel", num_gpus=1, outcome="runs"),)
PROBES = (
    CollectiveProbe(op="all_reduce", bytes=12288, seconds=19e-6),
    CollectiveProbe(op="all_reduce", bytes=8_000_000, seconds=4e-3),
    CollectiveProbe(op="send_receive", bytes=12288, seconds=30e-6),
)
TALKED = SelfTest(device="cpu", backend="shm", probes=PROBES)


def judged(facts, cases=RUNS, self_test=TALKED, preset="cpu", **given):
    return check(facts, make_settings(preset, given), cases, self_test)


def the(findings, topic, level=None):
    (found,) = [finding for finding in findings if finding.topic == topic and level in (None, finding.level)]
    return found


def test_a_cpu_machine_is_green_and_hears_in_one_line_what_a_gpu_would_add(facts):
    findings = judged(facts())

    assert can_run(findings)
    assert {finding.level for finding in findings} == {"ok", "note"}
    (note,) = [finding for finding in findings if finding.level == "note"]
    assert "no NVIDIA GPU: runs use CPU cores; a GPU would add gpt2-xl in 16 bits over NCCL" in note.text
    assert "\n" not in note.text


def test_a_gpu_machine_is_green(facts):
    findings = judged(facts(gpus=2), preset="xl", weights="random")

    assert {finding.level for finding in findings} == {"ok"}
    assert the(findings, "CUDA").text == "driver 580.65 for CUDA up to 13.0, NCCL 2.28.9"
    assert the(findings, "GPU 1").text == (
        "NVIDIA H100, 80.0 GiB (79.0 GiB free), clock 345 of 1980 MHz, PCIe 5.0 x16, 18 NVLinks"
    )


def test_every_warning_and_problem_has_a_remedy(facts):
    bad = DirectoryFacts(path="/x", problem="not writable")
    machine = facts(torch=None, temporary=bad, output=bad, num_cores=1)
    failed = Feasibility(strategy="pure_data_parallel", num_gpus=2, outcome="fails", reason="needs about 9 GiB")

    findings = judged(machine, cases=(failed,), self_test=SelfTest(problem="boom"), device="cuda")

    wrong = [finding for finding in findings if finding.level in ("warning", "problem")]
    assert len(wrong) >= 7
    assert all(finding.remedy for finding in wrong)
    assert not any(finding.remedy for finding in findings if finding not in wrong)


def test_no_torch(facts):
    found = the(judged(facts(torch=None)), "torch")

    assert (found.level, found.text) == ("problem", "torch is not installed")
    assert "pip install" in found.remedy


@pytest.mark.parametrize(("version", "level"), [("2.10.1+cpu", "warning"), ("2.11.0", "ok"), ("2.14.0", "warning")])
def test_torch_of_another_time(facts, version, level):
    found = the(judged(facts(torch=TorchFacts(version=version, build="CPU"))), "torch")

    assert found.level == level


@pytest.mark.parametrize(("device", "level"), [("auto", "warning"), ("cuda", "problem")])
def test_a_cpu_build_beside_a_gpu(facts, device, level):
    machine = facts(gpus=1, torch=TorchFacts(version="2.13.0+cpu", build="CPU"))

    found = the(judged(machine, device=device), "CUDA")

    assert found.level == level
    assert "1 GPU(s), but torch 2.13.0+cpu is a CPU build" in found.text
    assert "--index-url https://download.pytorch.org/whl/cu128" in found.remedy
    assert ("runs use CPU cores" in found.text) == (device == "auto")


@pytest.mark.parametrize(("device", "level"), [("auto", "warning"), ("cuda", "problem")])
def test_hidden_gpus(facts, device, level):
    machine = facts(gpus=(gpu(is_visible=False),), cuda_visible_devices="")

    findings = judged(machine, device=device)

    assert the(findings, "CUDA").level == level
    assert "no CUDA device visible: CUDA_VISIBLE_DEVICES='' hides all 1 GPU(s)" in the(findings, "CUDA").text
    assert "unset CUDA_VISIBLE_DEVICES" in the(findings, "CUDA").remedy
    assert "hidden by CUDA_VISIBLE_DEVICES" in the(findings, "GPU 0").text


def test_no_gpu_where_one_was_asked_for(facts):
    found = the(judged(facts(), device="cuda"), "CUDA")

    assert found.level == "problem"
    assert "use --device cpu" in found.remedy


@pytest.mark.parametrize(("device", "level"), [("auto", "warning"), ("cuda", "problem")])
def test_a_driver_that_does_not_answer(facts, device, level):
    machine = facts(driver=DriverFacts(error="Driver/library version mismatch"))

    found = the(judged(machine, device=device), "CUDA")

    assert found.level == level
    assert "does not answer (Driver/library version mismatch)" in found.text
    assert "restart the machine" in found.remedy


def test_a_driver_that_is_too_old_for_the_build(facts):
    found = the(judged(facts(gpus=1, driver=DriverFacts(version="550.1", cuda=(12, 4)))), "CUDA")

    assert found.level == "problem"
    assert "torch is built for CUDA 13.0, but driver 550.1 supports CUDA 12.4 at most" in found.text
    assert "install a torch built for CUDA 12" in found.remedy
    newer_minor = facts(gpus=1, driver=DriverFacts(version="580", cuda=(13, 2)))
    assert the(judged(newer_minor), "CUDA").level == "ok"


def test_gpus_are_not_judged_for_a_run_on_cores(facts):
    old, busy = DriverFacts(version="550.1", cuda=(12, 4)), gpu(processes=(GpuProcess(pid=17, name="python"),))

    findings = judged(facts(gpus=(busy,), driver=old), device="cpu")

    assert {finding.level for finding in findings} == {"ok", "note"}
    assert the(findings, "CUDA").text == "runs use CPU cores, because device is 'cpu'"


def test_foreign_programs_on_a_gpu(facts):
    busy = gpu(processes=(GpuProcess(pid=17, name="python", memory_bytes=3 * GIB), GpuProcess(pid=18, name="X")))

    found = [f for f in judged(facts(gpus=(busy,))) if f.level == "warning"]

    assert [f.text for f in found] == [
        "python (process 17) runs there too and holds 3.0 GiB: it will disturb timings",
        "X (process 18) runs there too: it will disturb timings",
    ]


def test_gpus_without_nvlink_and_little_shared_memory(facts):
    gpus = (gpu(0, num_nvlinks=None), gpu(1, num_nvlinks=None, sm_clock_mhz=None, pcie=None))

    findings = judged(facts(gpus=gpus, shm_bytes=64 << 20))

    assert the(findings, "links").level == "note"
    assert the(findings, "GPU 1").text == "NVIDIA H100, 80.0 GiB (79.0 GiB free), no NVLink"
    warning = the(findings, "shared memory", "warning")
    assert "/dev/shm has 64 MiB" in warning.text
    assert "--shm-size" in warning.remedy
    alone = judged(facts(gpus=gpus[:1], shm_bytes=64 << 20))
    assert not [f for f in alone if f.level == "warning" or f.topic == "links"]


def test_few_cores(facts):
    found = the(judged(facts(num_cores=1, num_machine_cores=8)), "cores")

    assert found.level == "warning"
    assert "1 cores of the machine's 8 (this process may use no more): ranks share them" in found.text
    assert the(judged(facts(num_cores=4), cores_per_rank=3), "cores").level == "warning"


def test_thread_settings_are_quoted(facts):
    found = the(judged(facts(thread_variables={"OMP_NUM_THREADS": "64"})), "threads")

    assert (found.level, "OMP_NUM_THREADS=64" in found.text) == ("note", True)


@pytest.mark.parametrize("topic", ["temporary", "output"])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"problem": "/x cannot be written (Permission denied)"}, "/x/y: /x cannot be written (Permission denied)"),
        ({"free_bytes": 5 << 20}, "/x/y: only 5 MiB are free on its disk"),
    ],
)
def test_directories(facts, topic, state, message):
    findings = judged(facts(**{topic: DirectoryFacts(path="/x/y", **state)}))

    found = the(findings, "temporary files" if topic == "temporary" else topic)
    assert (found.level, found.text) == ("problem", message)
    assert ("TMPDIR" if topic == "temporary" else "--output-dir") in found.remedy
    assert not can_run(findings)


@pytest.mark.parametrize(
    ("model", "given", "level", "message"),
    [
        ({"directory": "/models/gpt2"}, {}, "ok", "gpt2: /models/gpt2"),
        ({}, {"weights": "auto"}, "ok", "no files on this disk, so weights are random"),
        ({}, {"weights": "random"}, "ok", "no files are needed"),
        ({}, {"weights": "checkpoint"}, "note", "the first run downloads 0.5 GiB from the hub"),
        ({}, {"weights": "checkpoint", "offline": "true"}, "problem", "--offline forbids a download"),
        ({"problem": "model.safetensors: truncated"}, {}, "problem", "gpt2: model.safetensors: truncated"),
    ],
)
def test_model_files(facts, model, given, level, message):
    found = the(judged(facts(models=(ModelFacts(name="gpt2", **model),)), **given), "model")

    assert found.level == level
    assert message in found.text
    assert (level == "problem") == ("--weights random" in found.remedy)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({"free_bytes": 100 << 20}, "cannot hold 0.5 GiB (0.1 GiB are free)"),
        ({"problem": "/cache cannot be written (Read-only file system)"}, "(Read-only file system)"),
    ],
)
def test_a_cache_that_cannot_take_the_download(facts, cache, message):
    machine = facts(cache=DirectoryFacts(path="/cache", **cache))

    found = the(judged(machine, weights="checkpoint"), "model")

    assert (found.level, message in found.text) == ("problem", True)
    assert "HF_HOME" in found.remedy


def test_models_without_trained_weights_and_unknown_ones(facts):
    assert the(judged(facts(), model="qwen3-nano", weights="checkpoint"), "model").level == "problem"
    assert "not a known model" in the(judged(facts(), model="nosuch"), "model").text
    assert "a directory" in the(judged(facts(), model="/"), "model").text


def test_cases_that_fail_are_told_once_for_each_reason(facts):
    big = "needs about 9.0 GiB of memory, 2.0 GiB are free"
    cases = [
        Feasibility(strategy="a", num_gpus=1, outcome="runs"),
        Feasibility(strategy="a", num_gpus=2, outcome="fails", reason=big),
        Feasibility(strategy="b", num_gpus=2, outcome="fails", reason=big),
        Feasibility(strategy="b", num_gpus=4, outcome="fails", reason="too many heads"),
        Feasibility(strategy="b", num_gpus=8, outcome="skipped", reason="needs 8 GPUs"),
    ]

    findings = [finding for finding in judged(facts(), cases=cases) if finding.topic == "cases"]

    assert [finding.text for finding in findings] == [
        "1 of 5 can run here, 1 are skipped",
        f"a-2gpu, b-2gpu: {big}",
        "b-4gpu: too many heads",
    ]
    assert "--batch-size" in findings[1].remedy
    assert "--strategy" in findings[2].remedy


def test_skipped_cases_alone_are_no_job(facts):
    skipped = Feasibility(strategy="a", num_gpus=2, outcome="skipped", reason="needs 2 GPUs")

    assert can_run(judged(facts(), cases=(*RUNS, skipped)))
    findings = judged(facts(), cases=(skipped,))
    assert not can_run(findings)
    assert "--oversubscribe" in the(findings, "cases", "problem").remedy


def test_a_request_without_cases(facts):
    found = the(judged(facts(), cases="unknown strategy 'x'"), "cases")

    assert (found.level, found.text) == ("problem", "unknown strategy 'x'")


def test_the_self_test_tells_latency_and_bandwidth(facts):
    found = the(judged(facts()), "self-test")

    assert found.text == "two cpu ranks over shm: sum 19 µs, 2.00 GB/s; round trip 30 µs, 0.41 GB/s"


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("the run did not finish within 60 s: rank 0 was in phase 'connect'", "busy"),
        ("rank 1 failed in phase 'connect': no route", "try another --backend (gloo works everywhere)"),
    ],
)
def test_a_self_test_that_fails(facts, problem, remedy):
    findings = judged(facts(), self_test=SelfTest(device="cpu", backend="gloo", problem=problem))

    assert the(findings, "self-test").text == f"two cpu ranks over gloo failed: {problem}"
    assert remedy in the(findings, "self-test").remedy
    assert not can_run(findings)
