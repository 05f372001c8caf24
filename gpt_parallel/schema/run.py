"""The specification of a run: the frozen, validated contract between the pytest process and the ranks.

A `RunSpec` is completely resolved: the model's architecture and files, every request's
token ids, the mesh and the device are all in it. A JSON round trip does not change it.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import quoted
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.fault import FaultSpec
from gpt_parallel.schema.frozen import Frozen, Text
from gpt_parallel.schema.model import ModelSpec

Dtype = Literal["float32", "bfloat16", "float16"]
AttentionChoice = Literal["auto", "flash", "efficient", "math", "cudnn"]
WhenBusy = Literal["auto", "wait", "refuse", "share"]
TimeoutSeconds = Annotated[float, Field(gt=0, le=10_000_000)]
MAX_RANKS = 9999


class SamplingSpec(Frozen):
    """The sampling of tokens. Names have transformers' meaning; temperature 0 is greedy."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: NonNegativeInt = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: PositiveFloat = 1.0
    seed: NonNegativeInt = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def filters(self) -> bool:
        """Whether top-k or top-p filter the distribution, which needs the whole vocabulary on one rank."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1)


class Request(Frozen):
    """One prompt and the number of tokens to generate. There is no early stop, so the work is fixed."""

    request_id: NonNegativeInt
    prompt_ids: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
    max_new_tokens: PositiveInt

    @property
    def total_tokens(self) -> int:
        return len(self.prompt_ids) + self.max_new_tokens


class WorkloadSpec(Frozen):
    """A fixed set of requests; every layout processes the same ones."""

    requests: Annotated[tuple[Request, ...], Field(min_length=1)]
    batch_size: PositiveInt
    sampling: SamplingSpec = SamplingSpec()
    source: Text = "given ids"

    @property
    def num_output_tokens(self) -> int:
        return sum(request.max_new_tokens for request in self.requests)

    @property
    def shape(self) -> str:
        """For captions, e.g. `16 requests x (64 + 16 tokens), batch 4`."""
        prompts = sorted(len(request.prompt_ids) for request in self.requests)
        news = sorted(request.max_new_tokens for request in self.requests)
        lengths = " + ".join(str(v[0]) if v[0] == v[-1] else f"{v[0]}–{v[-1]}" for v in (prompts, news))
        return f"{len(self.requests)} requests × ({lengths} tokens), batch {self.batch_size}"


class RequestTokens(Frozen):
    """The tokens that a run generated for a request."""

    request_id: NonNegativeInt
    tokens: tuple[NonNegativeInt, ...]


class MeshSpec(Frozen):
    """Degrees of pipeline, data and tensor parallelism. tp is innermost: rank = (stage·dp + replica)·tp + shard."""

    pp: PositiveInt = 1
    dp: PositiveInt = 1
    tp: PositiveInt = 1

    @property
    def size(self) -> int:
        return self.pp * self.dp * self.tp

    def __str__(self) -> str:
        axes = [f"{name}{size}" for name, size in (("pp", self.pp), ("dp", self.dp), ("tp", self.tp)) if size > 1]
        return "·".join(axes) or "1"


class ExecutionSpec(Frozen):
    """The execution of a run: device, number type, cores, warm-up passes, timed rounds, deadline, extra recordings.

    `profile` is the directory for this run's traces.
    """

    device: Literal["cpu", "cuda"]
    dtype: Dtype
    backend: Literal["gloo", "nccl", "shm"]
    linear: Literal["auto", "plain", "packed"] = "auto"
    attention: AttentionChoice = "auto"
    decode: Literal["eager", "graph"] = "eager"
    cores_per_rank: PositiveInt = 1
    oversubscribed: bool = False
    warmup: PositiveInt = 1
    rounds: NonNegativeInt = 3
    timeout_s: TimeoutSeconds = 600.0
    telemetry: bool = True
    breakdown: bool = False
    profile: Text | None = None
    log_dir: Text = "reports/logs"
    fault: FaultSpec | None = None

    def cores_of(self, local_rank: int, available: Sequence[int]) -> tuple[int, ...]:
        """The cores a rank is pinned to: consecutive slices, reused in turn if there are more ranks than cores."""
        count = self.cores_per_rank
        return tuple(sorted({available[(local_rank * count + index) % len(available)] for index in range(count)}))


class RunSpec(Frozen):
    """One case, completely resolved."""

    strategy: Text
    mesh: MeshSpec
    model: ModelSpec
    workload: WorkloadSpec
    execution: ExecutionSpec
    degenerate: bool = False
    engine: Text = "gpt_parallel"

    @validate_model(mode="after")
    def _fits(self) -> Self:
        problems = [*_mesh_problems(self.mesh, self.model), *_request_problems(self.workload, self.model)]
        problems += _fault_problems(self.mesh, self.execution.fault)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def num_gpus(self) -> int:
        return self.mesh.size

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.num_gpus}gpu"

    def with_execution(self, **changes: Any) -> "RunSpec":
        """The same run with changed fields of its execution, which are not validated again."""
        return self.model_copy(update={"execution": self.execution.model_copy(update=changes)})

    def single_device(self, *, warmup: int = 1, rounds: int = 0) -> "RunSpec":
        """The same work on one device, the reference of every layout."""
        execution = self.execution.model_copy(
            update={
                **{"backend": "gloo", "warmup": warmup, "rounds": rounds, "oversubscribed": False},
                **{"telemetry": False, "breakdown": False, "profile": None, "fault": None},
            }
        )
        return RunSpec(
            strategy="reference", mesh=MeshSpec(), model=self.model, workload=self.workload, execution=execution
        )


class JobKind(str, Enum):
    """The kind of a job: generating (and timing), scoring given tokens teacher-forced with the engine or with
    transformers (`JUDGE`), or timing collectives.
    """

    GENERATE = "generate"
    SCORE = "score"
    JUDGE = "judge"
    SELF_TEST = "self_test"


class Job(Frozen):
    """The job of all ranks. A request may be in `tokens_to_score` several times with different tokens.

    `tolerance` is relative to the scale of a step's scores.
    """

    kind: JobKind
    spec: RunSpec
    tokens_to_score: tuple[RequestTokens, ...] = ()
    tolerance: Annotated[float, Field(ge=0)] = 0.0


def _mesh_problems(mesh: MeshSpec, model: ModelSpec) -> list[str]:
    shape = model.architecture
    problems = []
    if mesh.size > MAX_RANKS:
        problems.append(f"a mesh of {quoted(mesh.size)} ranks is too large; allowed: 1 to {MAX_RANKS}")
    if mesh.tp > shape.num_heads:
        problems.append(
            f"tensor_parallel_size {quoted(mesh.tp)} is larger than {model.name}'s {shape.num_heads} attention heads; "
            f"allowed: 1 to {shape.num_heads}"
        )
    if mesh.pp > shape.num_layers:
        problems.append(
            f"pipeline_parallel_size {quoted(mesh.pp)} is larger than {model.name}'s {shape.num_layers} layers; "
            f"allowed: 1 to {shape.num_layers}"
        )
    return problems


def _fault_problems(mesh: MeshSpec, fault: FaultSpec | None) -> list[str]:
    if fault is None:
        return []
    if fault.rank >= mesh.size:
        return [f"fault {fault}: there is no rank {quoted(fault.rank)}; allowed: 0 to {mesh.size - 1}"]
    if fault.action == "hang_in_collective" and mesh.size == 1:
        return [f"fault {fault}: a single-rank run has no collectives; use action 'hang'"]
    return []


def _request_problems(workload: WorkloadSpec, model: ModelSpec) -> list[str]:
    shape = model.architecture
    problems = []
    ids = [request.request_id for request in workload.requests]
    if len(set(ids)) != len(ids):
        problems.append("request ids are not unique")
    per_request = [
        f"request {request.request_id}: {problem}"
        for request in workload.requests
        for problem in request_problems(request, model.name, shape)
    ]
    if len(per_request) > 3:
        per_request[3:] = [f"… and {len(per_request) - 3} more requests"]
    return problems + per_request


def request_problems(request: Request, model: str, shape: Architecture) -> list[str]:
    """The reasons why a request cannot be run with a model."""
    problems = []
    if request.total_tokens > shape.max_positions:
        problems.append(
            f"{len(request.prompt_ids)} prompt + {quoted(request.max_new_tokens)} new tokens "
            f"= {quoted(request.total_tokens)}, but {model} has {shape.max_positions} positions; "
            "use shorter prompts or fewer new tokens"
        )
    if max(request.prompt_ids) >= shape.vocab_size:
        problems.append(
            f"token id {quoted(max(request.prompt_ids))} is outside {model}'s vocabulary; "
            f"allowed: 0 to {shape.vocab_size - 1}"
        )
    return problems
