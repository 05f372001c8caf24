"""What leaves a run: the schema of `result.json`, and of the report each rank hands to the launcher."""

import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from gpt_parallel.spec import Frozen, MeshSpec, RunSpec, SpecError


class CollectiveCount(Frozen):
    """How often a rank called a collective in one pass over all requests, and the bytes it contributed."""

    op: str
    calls: NonNegativeInt
    bytes: NonNegativeInt


class BatchTimeline(Frozen):
    """When a batch started and when each of its tokens was sampled, in seconds of the host's monotonic clock.

    The first stage knows the start, the last stage the tokens.
    """

    batch_id: str
    start_s: float | None = None
    token_times_s: tuple[float, ...] = ()


class RoundReport(Frozen):
    """One timed round as one rank saw it; `changed_requests` did not reproduce the recorded tokens."""

    seconds: NonNegativeFloat
    timelines: tuple[BatchTimeline, ...] = ()
    changed_requests: tuple[int, ...] = ()


class TokenRecord(Frozen):
    """A request's generated tokens, each with its log-probability and the largest |logit| of its step.

    Log-probabilities are of the model's raw distribution, natural log.
    """

    request_id: NonNegativeInt
    tokens: tuple[NonNegativeInt, ...]
    logprobs: tuple[float, ...]
    logit_scales: tuple[float, ...]


class TokenScore(Frozen):
    """Teacher-forced verdict on a request: per token, how far its score lies below the best one, and the logit scale.

    `margins` is infinite (stored as None) where sampling's filters exclude the token altogether.
    """

    request_id: NonNegativeInt
    margins: tuple[float | None, ...]
    logit_scales: tuple[float, ...]


class RankReport(Frozen):
    """All that one rank tells the launcher."""

    rank: NonNegativeInt
    stage: NonNegativeInt
    replica: NonNegativeInt
    shard: NonNegativeInt
    layers: tuple[int, int]
    num_heads: NonNegativeInt
    parameter_bytes: NonNegativeInt
    kv_cache_bytes: NonNegativeInt = 0
    collectives: tuple[CollectiveCount, ...] = ()
    rounds: tuple[RoundReport, ...] = ()
    records: tuple[TokenRecord, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    peak_memory_bytes: NonNegativeInt | None = None
    phase_seconds: dict[str, float] = Field(default_factory=dict)
    device_name: str = ""
    cores: tuple[int, ...] = ()
    torch_version: str = ""


class Tie(Frozen):
    """A token that differs from the reference's but scores as well, within the number type's tolerance."""

    request_id: NonNegativeInt
    position: NonNegativeInt
    margin: float


class Verification(Frozen):
    """A run against its single-device reference."""

    status: Literal["exact", "tie", "mismatch", "skipped"]
    tokens_compared: NonNegativeInt = 0
    max_logprob_difference: float | None = None
    ties: tuple[Tie, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return self.status in ("exact", "tie")


class Environment(Frozen):
    """The machine and the code."""

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


class Figures(Frozen):
    """What was measured. A round's time is its slowest rank's; throughput is of the median round.

    TTFT: a batch's start to its first token. ITL: gaps between a batch's later tokens. TPOT: (last − first token) /
    (tokens − 1), one sample a batch and round; empty where batches have a single token.
    """

    round_seconds: tuple[float, ...] = ()
    throughput_tok_s: float | None = None
    throughput_per_gpu_tok_s: float | None = None
    ttft_samples_s: tuple[float, ...] = ()
    itl_samples_s: tuple[float, ...] = ()
    tpot_samples_s: tuple[float, ...] = ()
    ttft_s: float | None = None
    itl_s: float | None = None
    tpot_s: float | None = None


class Output(Frozen):
    request_id: NonNegativeInt
    tokens: tuple[NonNegativeInt, ...]
    text: str | None = None


class RunResult(Frozen):
    """One finished case."""

    schema_version: Literal[1] = 1
    spec: RunSpec
    weights_origin: str
    verification: Verification
    figures: Figures
    environment: Environment
    ranks: tuple[RankReport, ...]
    outputs: tuple[Output, ...]

    @property
    def mesh(self) -> MeshSpec:
        return self.spec.mesh

    def extra_info(self) -> dict[str, str | int | float | bool | None]:
        """The figures as one flat, JSON-safe row, for pytest-benchmark's `extra_info`."""
        spec, figures = self.spec, self.figures
        peaks = [rank.peak_memory_bytes for rank in self.ranks if rank.peak_memory_bytes is not None]
        return {
            "strategy": spec.strategy,
            "num_gpus": spec.num_gpus,
            "mesh": str(spec.mesh),
            "pp": spec.mesh.pp,
            "dp": spec.mesh.dp,
            "tp": spec.mesh.tp,
            "device": spec.execution.device,
            "device_name": self.environment.device_names[0] if self.environment.device_names else "",
            "backend": spec.execution.backend,
            "model": spec.model.name,
            "weights": self.weights_origin,
            "dtype": spec.execution.dtype,
            "workload": spec.workload.shape,
            "prompts": spec.workload.source,
            "batch_size": spec.workload.batch_size,
            "num_requests": len(spec.workload.requests),
            "output_tokens": spec.workload.num_output_tokens,
            "rounds": len(figures.round_seconds),
            "throughput_tok_s": figures.throughput_tok_s,
            "throughput_per_gpu_tok_s": figures.throughput_per_gpu_tok_s,
            "ttft_s": figures.ttft_s,
            "itl_s": figures.itl_s,
            "tpot_s": figures.tpot_s,
            "verified": self.verification.status,
            "tokens_compared": self.verification.tokens_compared,
            "oversubscribed": spec.execution.oversubscribed,
            "degenerate": spec.degenerate,
            "max_parameter_bytes": max(rank.parameter_bytes for rank in self.ranks),
            "max_kv_cache_bytes": max(rank.kv_cache_bytes for rank in self.ranks),
            "max_peak_memory_bytes": max(peaks) if peaks else None,
            "torch": self.environment.torch,
            "cpu": self.environment.cpu,
            "git_commit": self.environment.git_commit,
            "git_dirty": self.environment.git_dirty,
        }


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load_result(path: str | Path) -> RunResult:
    """Read a `result.json`; SpecError names the file and every wrong field."""
    try:
        return RunResult.model_validate_json(Path(path).read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise SpecError.from_validation(error, prefix=f"{path}: ") from error
