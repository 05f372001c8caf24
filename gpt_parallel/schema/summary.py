"""The summary of a case for reports, gates and pytest-benchmark's files."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, create_model
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.metrics import METRICS
from gpt_parallel.schema.result import FAULT_INJECTED

# Limits of plausible figures; results computed from larger ones might not be finite.
Seconds = Annotated[float, Field(ge=0, le=1e9)]
PositiveSeconds = Annotated[float, Field(ge=1e-12, le=1e9)]
Rate = Annotated[float, Field(ge=1e-12, le=1e15)]
Quantity = Annotated[float, Field(ge=0, le=1e15)]
Count = Annotated[int, Field(ge=0, le=2**53)]
PositiveCount = Annotated[int, Field(ge=1, le=2**53)]


class LaunchFigures(Frozen):
    """The figures of one launch, the independent unit of comparisons. Times are medians over its rounds."""

    round_seconds: tuple[PositiveSeconds, ...]
    throughput_tok_s: Rate | None
    ttft_s: Seconds | None
    itl_s: Seconds | None
    tpot_s: Seconds | None
    latency_s: Seconds | None
    peak_memory_bytes: Count | None


OWN_ENGINE = "gpt_parallel"
SUMMARY_VERSION = 1


class _Row(Frozen):
    """A case's figures as one row, all its launches together: pytest-benchmark's `extra_info`.

    Everything but `launches` is flat. Times are medians over launches; `_mean`, `_p90`, `_p95` and `_p99` are over the
    pooled samples, `_samples` of them, and null where there are too few for the percentile. `judge` proved the
    single-device run; `repeatable` is false if a timed round of any launch chose other tokens than its recorded pass;
    `attention_…` are the kernels that ran; `kv_copies` is the number of shards that hold a key and value head, at most.

    There is a field for each row of `METRICS` too; `telemetry.py` has their meanings. They are medians over launches;
    of a launch's ranks or GPUs the mean is taken, the largest of memory and temperature, the sum of power and energy.
    `breakdown_…` are shares of the pass. `unavailable` has the reasons for what is null.
    """

    model_config = ConfigDict(extra="ignore")  # users may add to a benchmark's extra_info

    schema_version: Literal[1] = 1
    engine: str = OWN_ENGINE
    strategy: str
    num_gpus: PositiveCount
    mesh: str
    pp: PositiveCount
    dp: PositiveCount
    tp: PositiveCount
    kv_copies: PositiveCount = 1
    device: str
    device_name: str
    backend: str
    linear: str | None = None
    attention: str | None = None
    attention_prefill: str | None = None
    attention_decode: str | None = None
    decode: str | None = None
    model: str
    weights: str
    dtype: str
    workload: str
    workload_sha256: str
    prompts: str
    batch_size: PositiveCount
    num_requests: PositiveCount
    output_tokens: PositiveCount
    rounds: Count
    throughput_tok_s: Rate | None
    throughput_per_gpu_tok_s: Rate | None
    ttft_s: Seconds | None
    ttft_mean_s: Seconds | None
    ttft_p90_s: Seconds | None
    ttft_p95_s: Seconds | None = None
    ttft_p99_s: Seconds | None
    ttft_samples: Count
    tpot_s: Seconds | None
    tpot_mean_s: Seconds | None
    tpot_p90_s: Seconds | None
    tpot_p95_s: Seconds | None = None
    tpot_p99_s: Seconds | None
    tpot_samples: Count
    latency_s: Seconds | None
    latency_mean_s: Seconds | None
    latency_p90_s: Seconds | None
    latency_p95_s: Seconds | None = None
    latency_p99_s: Seconds | None
    latency_samples: Count
    itl_s: Seconds | None
    verified: Literal["exact", "tie", "mismatch", "skipped", "fault-injected"]
    tokens_compared: Count
    judge: str | None = None
    repeatable: bool | None = None
    oversubscribed: bool
    shared: bool = False
    degenerate: bool
    max_parameter_bytes: Count
    max_kv_cache_bytes: Count
    max_peak_memory_bytes: Count | None
    peak_memory_bytes_by_rank: tuple[Count | None, ...]
    torch: str
    cpu: str
    num_cores: PositiveCount
    num_hosts: PositiveCount = 1
    cores_per_rank: PositiveCount
    hostname: str
    git_commit: str | None
    git_dirty: bool | None
    launches: Annotated[tuple[LaunchFigures, ...], Field(min_length=1)]
    peak: str | None = None
    gpu_throttle_reasons: str | None = None
    unavailable: str | None = None

    @validate_model(mode="after")
    def _has_no_figures_of_a_fault(self) -> Self:
        if self.verified == FAULT_INJECTED and (self.throughput_tok_s or any(x.round_seconds for x in self.launches)):
            raise ValueError(f"a case that is {FAULT_INJECTED!r} has no figures")
        return self

    @property
    def work(self) -> tuple[str, ...]:
        """Model, requests and prompts in words, equal for cases that differ only in their batch size."""
        workload = self.workload.removesuffix(f", batch {self.batch_size}")
        return f"{self.model}, weights: {self.weights}, {self.dtype}", workload, self.prompts

    @property
    def why_not_repeatable(self) -> str | None:
        """The reason and the remedy if timed rounds chose other tokens than the recorded pass, or None."""
        if self.repeatable is not False:
            return None
        told = "timed rounds chose other tokens than the recorded pass, all right within rounding"
        if "cudnn" in f"{self.attention_prefill} {self.attention_decode}":
            return f"{told}; cuDNN's attention does not repeat: --gpt-attention flash repeats"
        if self.backend == "nccl" and self.tp > 1:
            return f"{told}; NCCL's NVLS algorithm may not repeat: NCCL_ALGO=^NVLS disables it"
        return f"{told}; docs/design.md lists what may not repeat, and how to do without it"

    @property
    def is_peer(self) -> bool:
        """Whether the case is another engine's."""
        return self.engine != OWN_ENGINE


if TYPE_CHECKING:

    class CaseSummary(_Row):
        def __getattr__(self, name: str) -> Any:
            """The fields of `METRICS`."""

else:
    CaseSummary = create_model(
        "CaseSummary",
        __base__=_Row,
        __doc__=_Row.__doc__,
        __module__=__name__,
        **{metric.name: (Count | None if metric.is_bytes else Quantity | None, None) for metric in METRICS},
    )
