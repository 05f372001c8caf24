"""Samples GPUs through NVML while ranks generate. The launcher does it, so that the ranks are not disturbed.

Sampling begins when the last rank enters its timed rounds and ends when the last one leaves them. The loop that waits
for the ranks' events takes the samples between them, so no thread is needed. Every visible GPU is sampled once, however
many ranks it has; the ranks' reports identify the run's own GPUs by UUID.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, NamedTuple

from gpt_parallel.launch.devices import open_nvml
from gpt_parallel.schema.result import RankReport
from gpt_parallel.schema.run import ExecutionSpec
from gpt_parallel.schema.telemetry import GpuTelemetry

PERIOD_S = 0.1


class _Quantity(NamedTuple):
    """How to read a value of a GPU, and how to combine its samples."""

    read: Callable[[Any, Any], float]
    combine: Callable[[Sequence[float]], float]


_QUANTITIES = {
    "utilisation_percent": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu, fmean),
    "memory_used_bytes": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used, max),
    "power_w": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000, fmean),
    "sm_clock_mhz": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM), fmean),
    "memory_clock_mhz": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM), fmean),
    "temperature_c": _Quantity(lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU), max),
}
# Bits of nvmlDeviceGetCurrentClocksThrottleReasons (nvml.h); the other bits do not mean throttling.
_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "synchronised boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


class _Gpu:
    """One physical GPU, its samples, and the reasons for values that it does not report."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.uuid, self.name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
        self._samples: dict[str, list[float]] = {name: [] for name in _QUANTITIES}
        self._throttling = 0
        self._energy_mj: list[int] = []
        self._unavailable: dict[str, str] = {}

    def sample(self) -> None:
        for name, quantity in _QUANTITIES.items():
            value = self._read(name, quantity.read)
            if value is not None:
                self._samples[name].append(value)
        bits = self._read("throttle_reasons", lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu))
        self._throttling |= int(bits or 0)

    def read_energy(self) -> None:
        energy = self._read("energy_j", lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu))
        if energy is not None:
            self._energy_mj.append(int(energy))

    def _read(self, name: str, read: Callable[[Any, Any], float]) -> float | None:
        """A value, or None after noting why NVML does not report it."""
        try:
            return read(self._nvml, self._handle)
        except self._nvml.NVMLError as error:
            self._unavailable[name] = f"NVML: {error}"
            return None

    def telemetry(self, seconds: float) -> GpuTelemetry:
        values: dict[str, Any] = {}
        for name, samples in self._samples.items():
            if samples:
                combined = _QUANTITIES[name].combine(samples)
                values[name] = int(combined) if name == "memory_used_bytes" else combined
        if "throttle_reasons" not in self._unavailable:
            values["throttle_reasons"] = tuple(text for bit, text in _REASONS.items() if self._throttling & bit)
        if len(self._energy_mj) == 2:
            used = self._energy_mj[1] - self._energy_mj[0]
            if used > 0:
                values["energy_j"] = used / 1000
            else:
                self._unavailable["energy_j"] = f"the counter did not advance in the {seconds:.3f} s of the rounds"
        names = (*_QUANTITIES, "throttle_reasons", "energy_j")
        missing = {name: self._unavailable.get(name, "no round was timed") for name in names if name not in values}
        count = max(map(len, self._samples.values()))
        return GpuTelemetry(
            uuid=self.uuid, name=self.name, seconds=seconds, samples=count, unavailable=missing, **values
        )


class GpuSampler:
    """Samples GPUs during the timed rounds; the loop that watches the ranks calls `on_phase` and `poll`."""

    reason = "NVML lists no GPU with the UUID of the one that a rank ran on"

    def __init__(self, nvml: Any, num_ranks: int, now: Callable[[], float] = time.monotonic) -> None:
        self._num_ranks, self._now = num_ranks, now
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        self._gpus = [_Gpu(nvml, handle) for handle in handles]
        self._inside: set[int] = set()
        self._left: set[int] = set()
        self._begin: float | None = None
        self._due = math.inf
        self._seconds = 0.0

    def on_phase(self, rank: int, phase: str) -> None:
        """Start or stop sampling as ranks enter phases; timed rounds are named "round 1 of 3" and so on."""
        if phase.startswith("round "):
            self._inside.add(rank)
            if self._begin is None and len(self._inside) == self._num_ranks:
                self._start()
        elif rank in self._inside:
            self._left.add(rank)
            if self._due != math.inf and len(self._left) == self._num_ranks:
                self._stop()

    def poll(self) -> float:
        """Take a sample if one is due; return the seconds until the next one."""
        if self._now() >= self._due:
            self._sample()
        return max(0.0, self._due - self._now())

    def _start(self) -> None:
        for gpu in self._gpus:
            gpu.read_energy()
        self._begin = self._now()
        self._due = self._begin + PERIOD_S  # an immediate reading would still cover the warm-up

    def _sample(self) -> None:
        for gpu in self._gpus:
            gpu.sample()
        self._due = self._now() + PERIOD_S

    def _stop(self) -> None:
        for gpu in self._gpus:
            gpu.read_energy()
        self._sample()
        assert self._begin is not None
        self._seconds = self._now() - self._begin
        self._due = math.inf

    def telemetry(self, ranks: Sequence[RankReport]) -> tuple[GpuTelemetry, ...]:
        """The telemetry of the GPUs that the ranks ran on, by their reports."""
        used = {telemetry.device_uuid for rank in ranks if (telemetry := rank.diagnostics.telemetry) is not None}
        return tuple(gpu.telemetry(self._seconds) for gpu in self._gpus if gpu.uuid in used)


class NoSampler:
    """Replaces the sampler where there is nothing to sample; `reason` says why."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def on_phase(self, rank: int, phase: str) -> None:
        pass

    def poll(self) -> float:
        return math.inf

    def telemetry(self, ranks: Sequence[RankReport]) -> tuple[GpuTelemetry, ...]:
        return ()


@contextmanager
def gpu_sampler(
    execution: ExecutionSpec, num_ranks: int, *, elsewhere: bool = False
) -> Iterator[GpuSampler | NoSampler]:
    """Make a launch's sampler. Telemetry never fails a run: values that NVML does not report have a reason instead.

    `elsewhere`: a launcher starts the ranks, maybe on other machines.
    """
    if elsewhere:
        yield NoSampler("GPUs are sampled only for ranks that start without a launcher")
        return
    if not execution.telemetry:
        yield NoSampler("telemetry was switched off")
        return
    if execution.device != "cuda":
        yield NoSampler("the ranks ran on CPU cores; only NVIDIA GPUs report this")
        return
    with open_nvml() as (nvml, error):
        yield NoSampler(f"NVML: {error}") if nvml is None else _sampler(nvml, num_ranks)


def _sampler(nvml: Any, num_ranks: int) -> GpuSampler | NoSampler:
    try:
        return GpuSampler(nvml, num_ranks)
    except nvml.NVMLError as error:
        return NoSampler(f"NVML: {error}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
