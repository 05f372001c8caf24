"""The schema of telemetry, derived figures and the breakdown of a run.

A missing value is null, and `unavailable` has the reason. It is never 0, which would look like a measurement.
"""

from pydantic import Field, NonNegativeFloat, NonNegativeInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.schema.frozen import Frozen


class Readings(Frozen):
    """Values that may be missing; `unavailable` has the reason for each missing one, by its name."""

    unavailable: dict[str, str] = Field(default_factory=dict)

    @validate_model(mode="after")
    def _every_gap_has_its_reason(self) -> Self:
        silent = [name for name, value in self if value is None and name not in self.unavailable]
        if silent:
            raise ValueError(f"no value and no reason for {', '.join(silent)}")
        return self


class RankTelemetry(Readings):
    """A rank's use of CPU and memory over its timed rounds, which took `seconds` together.

    `cpu_share` is CPU time of all the rank's threads ÷ (seconds × its cores). A rank that waits by polling uses CPU
    time, too. Memory is read after the last round: resident counts a page that ranks share in full,
    proportional (PSS) divides it among those that share it. `allocated` and `reserved` are peaks of torch.cuda.
    """

    seconds: NonNegativeFloat
    cpu_seconds: NonNegativeFloat
    cpu_share: NonNegativeFloat | None = None
    resident_bytes: NonNegativeInt | None = None
    proportional_bytes: NonNegativeInt | None = None
    peak_allocated_bytes: NonNegativeInt | None = None
    peak_reserved_bytes: NonNegativeInt | None = None
    device_uuid: str | None = None


class PeakRates(Readings):
    """The peak rates of a rank's device, measured after the rounds by all ranks at once; `method` describes how."""

    method: str
    bytes_per_s: NonNegativeFloat | None = None
    flop_per_s: NonNegativeFloat | None = None


BREAKDOWN_PARTS = ("compute", "communication", "waiting", "sampling", "host")


class Breakdown(Frozen):
    """The breakdown of one rank's time in an instrumented pass that all ranks start and end together; seconds.

    The five parts add up to `wall_s`; `host_s` is what the others leave. `method` describes how waiting was
    separated from communication.
    """

    wall_s: NonNegativeFloat
    compute_s: NonNegativeFloat
    communication_s: NonNegativeFloat
    waiting_s: NonNegativeFloat
    sampling_s: NonNegativeFloat
    host_s: float
    method: str


class GpuTelemetry(Readings):
    """One physical GPU over the timed rounds: means of utilisation, power and clocks, maxima of memory and temperature.

    `energy_j` is the difference of the GPU's own counter, which includes other programs on it.
    """

    uuid: str
    name: str
    seconds: NonNegativeFloat
    samples: NonNegativeInt
    utilisation_percent: NonNegativeFloat | None = None
    memory_used_bytes: NonNegativeInt | None = None
    power_w: NonNegativeFloat | None = None
    sm_clock_mhz: NonNegativeFloat | None = None
    memory_clock_mhz: NonNegativeFloat | None = None
    temperature_c: NonNegativeFloat | None = None
    throttle_reasons: tuple[str, ...] | None = None
    energy_j: NonNegativeFloat | None = None


class Energy(Readings):
    """The energy of all GPUs of a run over its timed rounds."""

    energy_j: NonNegativeFloat | None = None
    energy_j_per_token: NonNegativeFloat | None = None


class Efficiency(Readings):
    """The utilisation of a run; `bench/efficiency.py` has the formulas. `peak` describes the measured peak."""

    peak: str
    mbu: NonNegativeFloat | None = None
    mfu: NonNegativeFloat | None = None
    bytes_per_step: NonNegativeFloat
    flop_per_round: NonNegativeFloat
