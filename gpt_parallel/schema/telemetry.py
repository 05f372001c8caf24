"""What is known about a run beside its speed: the schema of telemetry, derived figures and the breakdown.

A value that could not be had is null, and `unavailable` says why. It is never 0: a reader could not tell that from a
measurement.
"""

from pydantic import Field, NonNegativeFloat, NonNegativeInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.schema.frozen import Frozen


class Readings(Frozen):
    """Values, each of them there or with the reason in `unavailable`, by its name, why it is not."""

    unavailable: dict[str, str] = Field(default_factory=dict)

    @validate_model(mode="after")
    def _every_gap_has_its_reason(self) -> Self:
        silent = [name for name, value in self if value is None and name not in self.unavailable]
        if silent:
            raise ValueError(f"no value and no reason for {', '.join(silent)}")
        return self


class RankTelemetry(Readings):
    """What one rank used over its timed rounds, `seconds` long in all.

    `cpu_share` is CPU time of all the rank's threads ÷ (seconds × its cores). A rank that waits by looking again and
    again uses CPU time, too. Memory is read after the last round: resident counts a page that ranks share in full,
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
    """The most that a rank's device did, measured after the rounds by all ranks at once; `method` says how."""

    method: str
    bytes_per_s: NonNegativeFloat | None = None
    flop_per_s: NonNegativeFloat | None = None


BREAKDOWN_PARTS = ("compute", "communication", "waiting", "sampling", "host")


class Breakdown(Frozen):
    """Where one rank's time went in one instrumented pass, which all ranks start and end together; seconds.

    The five parts add up to `wall_s`; `host_s` is what the others leave. `method` says how waiting was told from
    communication.
    """

    wall_s: NonNegativeFloat
    compute_s: NonNegativeFloat
    communication_s: NonNegativeFloat
    waiting_s: NonNegativeFloat
    sampling_s: NonNegativeFloat
    host_s: float
    method: str


class GpuTelemetry(Readings):
    """One physical GPU over the timed rounds: means of utilisation, power and clocks, the most memory and heat.

    `energy_j` is the difference of the GPU's own counter, with whatever else ran on it.
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
    """Of all GPUs of a run together, over its timed rounds."""

    energy_j: NonNegativeFloat | None = None
    energy_j_per_token: NonNegativeFloat | None = None


class Efficiency(Readings):
    """What a run did of what its devices can do; `layout/cost.py` has the formulas. `peak` says which peak that is."""

    peak: str
    mbu: NonNegativeFloat | None = None
    mfu: NonNegativeFloat | None = None
    bytes_per_step: NonNegativeFloat
    flop_per_round: NonNegativeFloat
