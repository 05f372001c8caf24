"""What the GPUs do during the rounds, with NVML's facts faked at the boundary and a clock that the test moves."""

import pynvml
import pytest

from gpt_parallel.bench.figures import energy
from gpt_parallel.launch import gpu_sampler as module
from gpt_parallel.launch.gpu_sampler import GpuSampler, gpu_sampler
from gpt_parallel.schema.run import ExecutionSpec
from gpt_parallel.schema.telemetry import RankTelemetry
from tests.support.factories import rank_report, run_spec


class Nvml:
    """Two GPUs; tests change `facts`. A fact that is an error is raised."""

    NVMLError = pynvml.NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", "degrees"

    def __init__(self):
        self.facts = {"busy": 50, "used": 1 << 30, "milliwatts": 300_000, "sm": 1500, "memory": 2600, "degrees": 60}
        self.facts |= {"reasons": 0, "millijoules": 1_000_000}
        self.asked = []

    def fact(self, gpu, name):
        self.asked.append((gpu, name))
        value = self.facts[name]
        if isinstance(value, Exception):
            raise value
        return value

    def nvmlDeviceGetCount(self):  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetName(self, gpu):  # noqa: N802
        return f"GPU model {gpu}"

    def nvmlDeviceGetUUID(self, gpu):  # noqa: N802
        return f"GPU-{gpu}"

    def nvmlDeviceGetUtilizationRates(self, gpu):  # noqa: N802
        return type("Rates", (), {"gpu": self.fact(gpu, "busy")})

    def nvmlDeviceGetMemoryInfo(self, gpu):  # noqa: N802
        return type("Memory", (), {"used": self.fact(gpu, "used")})

    def nvmlDeviceGetPowerUsage(self, gpu):  # noqa: N802
        return self.fact(gpu, "milliwatts")

    def nvmlDeviceGetClockInfo(self, gpu, kind):  # noqa: N802
        return self.fact(gpu, kind)

    def nvmlDeviceGetTemperature(self, gpu, kind):  # noqa: N802
        return self.fact(gpu, kind)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):  # noqa: N802
        return self.fact(gpu, "reasons")

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):  # noqa: N802
        return self.fact(gpu, "millijoules")


class Run:
    """Two ranks, watched."""

    def __init__(self):
        self.nvml, self.now = Nvml(), 100.0
        self.sampler = GpuSampler(self.nvml, 2, lambda: self.now)

    def enter(self, phase, ranks=(0, 1)):
        for rank in ranks:
            self.sampler.on_phase(rank, phase)

    def telemetry(self, *uuids):
        return self.sampler.telemetry([on_gpu(rank, uuid) for rank, uuid in enumerate(uuids)])


@pytest.fixture
def run():
    return Run()


def on_gpu(rank, uuid):
    telemetry = RankTelemetry(
        seconds=1.0,
        cpu_seconds=1.0,
        cpu_share=1.0,
        resident_bytes=1,
        proportional_bytes=1,
        peak_allocated_bytes=1,
        peak_reserved_bytes=1,
        device_uuid=uuid,
    )
    return rank_report(rank, telemetry=telemetry)


def test_nothing_is_asked_before_the_last_rank_enters_its_rounds(run):
    run.enter("load weights")
    run.enter("round 1 of 2", ranks=[0])

    assert run.sampler.poll() == float("inf")
    assert run.nvml.asked == []


def test_means_and_maxima_over_the_rounds(run):
    run.enter("round 1 of 2")
    assert run.sampler.poll() == pytest.approx(0.1)
    for busy, milliwatts, degrees, reasons in ((20, 200_000, 50, 0x1), (60, 400_000, 70, 0x4), (70, 600_000, 65, 0x44)):
        run.nvml.facts |= {"busy": busy, "milliwatts": milliwatts, "degrees": degrees, "reasons": reasons}
        run.now += 0.1
        run.sampler.poll()
    run.enter("round 2 of 2")
    run.nvml.facts["millijoules"] += 90_000
    run.now += 0.05
    run.enter("read telemetry")

    found, other = run.telemetry("GPU-0", "GPU-1")

    assert (found.samples, found.seconds) == (4, pytest.approx(0.35)), "the last one as the rounds end"
    assert found.utilisation_percent == (20 + 60 + 70 + 70) / 4
    assert found.power_w == 450
    assert found.temperature_c == 70
    assert (found.sm_clock_mhz, found.memory_clock_mhz, found.memory_used_bytes) == (1500, 2600, 1 << 30)
    assert found.throttle_reasons == ("software power cap", "hardware thermal slowdown")
    assert found.energy_j == other.energy_j == 90
    assert found.unavailable == {}


def test_sampling_ends_with_the_last_rank_and_does_not_start_again(run):
    run.enter("round 1 of 1")
    run.enter("read telemetry", ranks=[0])
    run.now += 0.1
    assert run.sampler.poll() == pytest.approx(0.1), "rank 1 still generates"
    run.enter("read telemetry", ranks=[1])
    run.enter("finish")
    asked = len(run.nvml.asked)
    run.now += 5.0

    assert run.sampler.poll() == float("inf")
    assert len(run.nvml.asked) == asked


def test_a_gpu_that_several_ranks_share_is_there_once_and_others_not_at_all(run):
    run.enter("round 1 of 1")
    run.enter("read telemetry")

    assert [gpu.uuid for gpu in run.telemetry("GPU-1", "GPU-1")] == ["GPU-1"]


def test_what_a_gpu_does_not_tell_is_null_with_nvmls_reason(run):
    run.nvml.facts |= {"milliwatts": pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)}
    run.nvml.facts |= {"millijoules": pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)}
    run.enter("round 1 of 1")
    run.enter("read telemetry")

    (found,) = run.telemetry("GPU-0")

    assert found.power_w is found.energy_j is None
    assert found.unavailable == {"power_w": "NVML: Not Supported", "energy_j": "NVML: Insufficient Permissions"}
    assert found.utilisation_percent == 50


def test_a_counter_that_does_not_move_is_no_energy(run):
    run.enter("round 1 of 1")
    run.now += 0.02
    run.enter("read telemetry")

    (found,) = run.telemetry("GPU-0")

    assert found.energy_j is None
    assert found.unavailable["energy_j"] == "the counter did not advance in the 0.020 s of the rounds"


def test_energy_is_of_all_gpus_and_all_rounds(run):
    run.enter("round 1 of 3")
    run.nvml.facts["millijoules"] += 90_000
    run.enter("read telemetry")
    gpus = run.telemetry("GPU-0", "GPU-1")
    spec = run_spec()  # 3 rounds of 3 tokens

    assert energy(spec, gpus, "none").energy_j_per_token == pytest.approx(180 / 9)
    lacking = energy(
        spec, [gpus[0], gpus[1].model_copy(update={"energy_j": None, "unavailable": {"energy_j": "x"}})], ""
    )
    assert lacking.energy_j is lacking.energy_j_per_token is None
    assert lacking.unavailable["energy_j_per_token"] == "GPU model 1: x"


def cuda(**changes):
    return ExecutionSpec(device="cuda", dtype="float32", backend="nccl", **changes)


def test_telemetry_never_fails_a_run(monkeypatch):
    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    with gpu_sampler(cuda(), 1) as sampler:
        sampler.on_phase(0, "round 1 of 1")
        assert (sampler.poll(), sampler.telemetry([])) == (float("inf"), ())
        assert sampler.reason == "NVML: NVML Shared Library Not Found"
    with gpu_sampler(cuda(telemetry=False), 1) as sampler:
        assert sampler.reason == "telemetry was switched off"
    with gpu_sampler(run_spec().execution, 1) as sampler:
        assert "CPU cores" in sampler.reason


def test_nvml_is_left_as_it_was_found(monkeypatch):
    calls = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: calls.append("init"))
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)

    def interrupted():
        with gpu_sampler(cuda(), 1) as sampler:
            assert isinstance(sampler, GpuSampler)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert calls == ["init", "shutdown"]
    assert module.PERIOD_S >= 0.05, "asking costs a GPU's driver time"


def test_the_launcher_tells_the_observer_and_wakes_up_for_it(suite):
    """With a real launch: phases arrive in order, and the loop does not sleep through the time for a look."""

    class Observer:
        def __init__(self):
            self.phases, self.looks = [], 0

        def on_phase(self, rank, phase):
            self.phases.append(phase)

        def poll(self):
            self.looks += 1
            return 0.001

    from gpt_parallel.launch.local import launch
    from gpt_parallel.schema.run import Job, JobKind

    observer = Observer()
    launch(Job(kind=JobKind.GENERATE, spec=suite.spec("pure_data_parallel", 1)), observer=observer)

    order = [phase for phase in observer.phases if phase in ("load weights", "round 2 of 2", "read telemetry")]
    assert order == ["load weights", "round 2 of 2", "read telemetry"]
    assert observer.looks > 3 * len(observer.phases)
