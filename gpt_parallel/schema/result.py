"""The schema of `result.json`, and of the report that each rank sends to the launcher."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import MeshSpec, RequestTokens, RunSpec
from gpt_parallel.schema.telemetry import Breakdown, Efficiency, Energy, GpuTelemetry, PeakRates, RankTelemetry

RESULT_VERSION = 2


class CollectiveCount(Frozen):
    """A rank's calls of a collective in one pass over all requests, and the bytes it contributed."""

    op: str
    calls: NonNegativeInt
    bytes: NonNegativeInt


class CollectiveProbe(Frozen):
    """The duration of one call of a collective: the median of many, on this rank."""

    op: str
    bytes: NonNegativeInt
    seconds: NonNegativeFloat


class BatchTimeline(Frozen):
    """The start of a batch and the times of its tokens, in seconds of the host's monotonic clock.

    The first stage knows the start, the last stage the tokens.
    """

    batch_id: str
    start_s: float | None = None
    token_times_s: tuple[float, ...] = ()


class RoundReport(Frozen):
    """One timed round on one rank; `changed` has the tokens that differ from the recorded ones, by request."""

    seconds: NonNegativeFloat
    timelines: tuple[BatchTimeline, ...] = ()
    changed: tuple[RequestTokens, ...] = ()


class TokenRecord(Frozen):
    """A request's generated tokens, with log-probabilities and the scales of their steps' logits if known.

    Log-probabilities are of the model's raw distribution, natural log. Errors are measured relative to the scale:
    highest logit − mean + largest |logit| / 3.
    """

    request_id: NonNegativeInt
    tokens: tuple[NonNegativeInt, ...]
    logprobs: tuple[float, ...] | None = None
    logit_scales: tuple[float, ...] | None = None


class TokenScore(Frozen):
    """The teacher-forced score of a request's tokens: each token's margin below the best score, and the scores' scale.

    `margins` is infinite (stored as None) where sampling's filters exclude the token. Log-probabilities and
    the logits' scale are as in `TokenRecord`, of the reference reading the run's tokens.
    """

    request_id: NonNegativeInt
    margins: tuple[float | None, ...]
    scales: tuple[float, ...]
    logprobs: tuple[float, ...]
    logit_scales: tuple[float, ...]


class AttentionKernels(Frozen):
    """Which of torch's attention kernels the recorded pass ran: flash, efficient, math, cudnn; "flash+math" if two."""

    prefill: str | None = None
    decode: str | None = None


class RankPlace(Frozen):
    """A rank's place in the mesh and on a machine. `shared`: other runs used its device at the same time."""

    rank: NonNegativeInt = 0
    stage: NonNegativeInt = 0
    replica: NonNegativeInt = 0
    shard: NonNegativeInt = 0
    host: str = ""
    device_name: str = ""
    cores: tuple[int, ...] = ()
    num_threads: NonNegativeInt | None = None
    torch_version: str = ""
    oversubscribed: bool = False
    shared: bool = False


class Holding(Frozen):
    """The part of the model on a rank: half-open range of layers, query heads, key and value heads, bytes held.

    `kv_copies`: the number of shards that hold a copy of each of its key and value heads, this one included.
    """

    layers: tuple[int, int]
    num_heads: NonNegativeInt
    num_kv_heads: NonNegativeInt | None = None
    kv_copies: PositiveInt = 1
    parameter_bytes: NonNegativeInt
    kv_cache_bytes: NonNegativeInt | None = None
    linear: Literal["plain", "packed"] = "plain"


class Generated(Frozen):
    """A rank's result of a generation job: timed rounds, the recorded pass, and a pass's kernels and collectives."""

    rounds: tuple[RoundReport, ...] = ()
    records: tuple[TokenRecord, ...] = ()
    attention: AttentionKernels | None = None
    collectives: tuple[CollectiveCount, ...] = ()


class Diagnostics(Frozen):
    """Diagnostics of a rank's job: `phase_seconds` by phase, `peak_memory_bytes` of the whole job, telemetry."""

    peak_memory_bytes: NonNegativeInt | None = None
    phase_seconds: dict[str, float] = Field(default_factory=dict)
    telemetry: RankTelemetry | None = None
    peak_rates: PeakRates | None = None
    breakdown: Breakdown | None = None


class RankReport(Frozen):
    """The report of one rank: its place, and the result of its job by the kind of job.

    `holding` is None where it is not known, such as for another engine. Exactly one of `generated`, `scored` and
    `probed` is set.
    """

    place: RankPlace
    holding: Holding | None = None
    generated: Generated | None = None
    scored: tuple[TokenScore, ...] | None = None
    probed: tuple[CollectiveProbe, ...] | None = None
    diagnostics: Diagnostics = Diagnostics()

    @validate_model(mode="after")
    def _is_of_one_job(self) -> Self:
        if sum(made is not None for made in (self.generated, self.scored, self.probed)) != 1:
            raise ValueError("a rank's report has exactly one of generated, scored and probed")
        return self

    def placed(self, **changes: Any) -> Self:
        """The same report with more details of its place."""
        return self.model_copy(update={"place": self.place.model_copy(update=changes)})

    @property
    def rounds(self) -> tuple[RoundReport, ...]:
        return self.generated.rounds if self.generated else ()

    @property
    def records(self) -> tuple[TokenRecord, ...]:
        return self.generated.records if self.generated else ()


class Tie(Frozen):
    """A token that differs from the reference's but scores as well, within the number type's tolerance.

    It is in the recorded pass, or in a timed `round` (from 1) that did not repeat that pass.
    """

    request_id: NonNegativeInt
    position: NonNegativeInt
    margin: float
    round: int | None = None


FAULT_INJECTED = "fault-injected"  # the status of a run with an injected fault, even if it succeeded


class Verification(Frozen):
    """The verdict on a run, compared with its single-device reference.

    `judge` proved the reference's tokens and scored those that differ: "transformers" with its version, or "engine",
    which is this engine on one device. `repeatable`: whether every timed round had the recorded tokens.
    """

    status: Literal["exact", "tie", "mismatch", "skipped", "fault-injected"]
    judge: str | None = None
    repeatable: bool | None = None
    tokens_compared: NonNegativeInt = 0
    max_logprob_difference: float | None = None
    ties: tuple[Tie, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.status in ("exact", "tie")


class Environment(Frozen):
    """The machine and the code. `variables`: environment variables of the launcher that may change figures."""

    gpt_parallel: str
    torch: str
    python: str
    platform: str
    cpu: str
    num_cores: int
    device_names: tuple[str, ...]
    hostname: str
    git_commit: str | None = None
    git_dirty: bool | None = None
    variables: dict[str, str] = Field(default_factory=dict)


class Figures(Frozen):
    """The figures of a run. A round's time is its slowest rank's; throughput is that of the median round.

    Load imbalance: a round's slowest rank ÷ the mean of its ranks; `imbalance` is the median round's.

    TTFT: a batch's start to its first token. ITL: gaps between a batch's later tokens. TPOT: (last − first token) /
    (tokens − 1), one sample a batch and round; empty where batches have a single token. Latency: a batch's start to its
    last token.
    """

    round_seconds: tuple[float, ...] = ()
    throughput_tok_s: float | None = None
    throughput_per_gpu_tok_s: float | None = None
    imbalance_by_round: tuple[float, ...] = ()
    imbalance: float | None = None
    ttft_samples_s: tuple[float, ...] = ()
    itl_samples_s: tuple[float, ...] = ()
    tpot_samples_s: tuple[float, ...] = ()
    latency_samples_s: tuple[float, ...] = ()
    ttft_s: float | None = None
    itl_s: float | None = None
    tpot_s: float | None = None
    latency_s: float | None = None


class Output(Frozen):
    request_id: NonNegativeInt
    tokens: tuple[NonNegativeInt, ...]
    text: str | None = None


class RunResult(Frozen):
    """One finished case."""

    schema_version: Literal[2] = 2
    spec: RunSpec
    weights_origin: str
    verification: Verification
    figures: Figures
    environment: Environment
    ranks: tuple[RankReport, ...]
    outputs: tuple[Output, ...]
    gpus: tuple[GpuTelemetry, ...] = ()
    energy: Energy | None = None
    efficiency: Efficiency | None = None

    @validate_model(mode="after")
    def _has_no_figures_of_a_fault(self) -> Self:
        """Check it whoever wrote the file."""
        is_stamped = self.verification.status == FAULT_INJECTED
        is_measured = self.figures.round_seconds or any(rank.rounds for rank in self.ranks)
        if is_stamped != (self.spec.execution.fault is not None) or (is_stamped and is_measured):
            raise ValueError(f"a run with a fault, and no other, has the status {FAULT_INJECTED!r}, and no figures")
        return self

    @property
    def mesh(self) -> MeshSpec:
        return self.spec.mesh


def schema_problem(found: object, newest: int) -> str | None:
    """Why data with this `schema_version` cannot be read, checked before all other fields; None if it can."""
    if found is None:
        return f"has no schema_version; this gpt_parallel reads versions up to {newest}"
    if type(found) is not int or found < 1:
        return f"schema_version {quoted(found)} is not one that this gpt_parallel reads (1 to {newest}); measure again"
    if found > newest:
        return (
            f"schema_version {quoted(found)} was made by a newer gpt_parallel, this one reads up to {newest}; "
            "use that version, or measure again"
        )
    return None
