"""What one run is: the frozen, validated contract between the pytest process and the ranks.

A `RunSpec` holds nothing that still has to be looked up: the model's architecture and files, every request's
token ids, the mesh and the device are all resolved. It survives a JSON round trip unchanged.
"""

from enum import Enum
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

Dtype = Literal["float32", "bfloat16", "float16"]
AttentionChoice = Literal["auto", "flash", "efficient", "math"]
TimeoutSeconds = Annotated[float, Field(gt=0, le=10_000_000)]


class SpecError(ValueError):
    """What the user asked for cannot be run. `problems` has one plain sentence per mistake."""

    def __init__(self, problems: str | list[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else problems
        super().__init__("\n".join(self.problems))

    @classmethod
    def from_validation(cls, error: ValidationError, prefix: str = "") -> "SpecError":
        """All wrong fields of a pydantic error at once, each with its value and what is allowed."""
        problems = []
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], dict | BaseModel) else f" = {item['input']!r}"
            head = f"{prefix}{field}{value}: " if field else prefix
            problems += [head + line for line in message.split("\n")]
        return cls(problems)


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Architecture(Frozen):
    """A GPT-2's shape, with Hugging Face's field names."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_embd: PositiveInt
    n_inner: PositiveInt
    vocab_size: PositiveInt
    n_positions: PositiveInt
    layer_norm_epsilon: PositiveFloat = 1e-5
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"] = "gelu_new"

    @validate_model(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @cached_property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face's GPT-2 tensors, by name without prefix."""
        width, inner = self.n_embd, self.n_inner
        tensors: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, width),
            "wpe.weight": (self.n_positions, width),
            "ln_f.weight": (width,),
            "ln_f.bias": (width,),
        }
        for layer in range(self.n_layer):
            for name in ("ln_1", "ln_2"):
                tensors[f"h.{layer}.{name}.weight"] = tensors[f"h.{layer}.{name}.bias"] = (width,)
            for name, rows, columns in (
                ("attn.c_attn", width, 3 * width),
                ("attn.c_proj", width, width),
                ("mlp.c_fc", width, inner),
                ("mlp.c_proj", inner, width),
            ):
                tensors[f"h.{layer}.{name}.weight"] = (rows, columns)
                tensors[f"h.{layer}.{name}.bias"] = (columns,)
        return tensors


class ModelSpec(Frozen):
    """A model and where its weights come from: safetensors files, or a seed."""

    name: str
    architecture: Architecture
    weights: Literal["checkpoint", "random"]
    seed: NonNegativeInt = 0
    directory: str | None = None
    files: tuple[str, ...] = ()
    key_prefix: str = ""

    @property
    def weights_origin(self) -> str:
        if self.weights == "random":
            return f"random (seed {self.seed})"
        return f"checkpoint {self.directory}"


class SamplingSpec(Frozen):
    """How a token is chosen; the names have transformers' meaning, temperature 0 is greedy."""

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
        """Whether top-k or top-p cut the distribution, which needs the whole vocabulary in one place."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1)


class Request(Frozen):
    """One prompt and how many tokens to generate for it. There is no early stop: work is fixed."""

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
    source: str = "given ids"

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
    """Where and how often: device, number type, cores, warm-up passes, timed rounds, deadline; what else is recorded.

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
    profile: str | None = None
    log_dir: str = "reports/logs"


class RunSpec(Frozen):
    """One case, completely resolved."""

    strategy: str
    mesh: MeshSpec
    model: ModelSpec
    workload: WorkloadSpec
    execution: ExecutionSpec
    degenerate: bool = False
    engine: str = "gpt_parallel"

    @validate_model(mode="after")
    def _fits(self) -> Self:
        problems = [*_mesh_problems(self.mesh, self.model), *_request_problems(self.workload, self.model)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def num_gpus(self) -> int:
        return self.mesh.size

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.num_gpus}gpu"

    def single_device(self, *, warmup: int = 1, rounds: int = 0) -> "RunSpec":
        """The same work on one device: what every layout is verified against."""
        execution = self.execution.model_copy(
            update={
                **{"backend": "gloo", "warmup": warmup, "rounds": rounds, "oversubscribed": False},
                **{"telemetry": False, "breakdown": False, "profile": None},
            }
        )
        return RunSpec(
            strategy="reference", mesh=MeshSpec(), model=self.model, workload=self.workload, execution=execution
        )


class JobKind(str, Enum):
    """What ranks are started for: generating (and timing), scoring given tokens teacher-forced, timing collectives."""

    GENERATE = "generate"
    SCORE = "score"
    SELF_TEST = "self_test"


class Job(Frozen):
    """What the launcher hands to every rank. `tolerance` of scores is relative to the largest one."""

    kind: JobKind
    spec: RunSpec
    tokens_to_score: dict[int, tuple[NonNegativeInt, ...]] = Field(default_factory=dict)
    tolerance: Annotated[float, Field(ge=0)] = 0.0


def _mesh_problems(mesh: MeshSpec, model: ModelSpec) -> list[str]:
    shape = model.architecture
    problems = []
    if mesh.tp > shape.n_head:
        problems.append(
            f"tensor_parallel_size {mesh.tp} is larger than {model.name}'s {shape.n_head} attention heads; "
            f"allowed: 1 to {shape.n_head}"
        )
    if mesh.pp > shape.n_layer:
        problems.append(
            f"pipeline_parallel_size {mesh.pp} is larger than {model.name}'s {shape.n_layer} layers; "
            f"allowed: 1 to {shape.n_layer}"
        )
    return problems


def _request_problems(workload: WorkloadSpec, model: ModelSpec) -> list[str]:
    shape = model.architecture
    problems = []
    ids = [request.request_id for request in workload.requests]
    if len(set(ids)) != len(ids):
        problems.append("request ids are not unique")
    per_request: list[str] = []
    for request in workload.requests:
        if request.total_tokens > shape.n_positions:
            per_request.append(
                f"request {request.request_id}: {len(request.prompt_ids)} prompt + {request.max_new_tokens} new tokens "
                f"= {request.total_tokens}, but {model.name} has {shape.n_positions} positions; "
                "use shorter prompts or fewer new tokens"
            )
        if max(request.prompt_ids) >= shape.vocab_size:
            per_request.append(
                f"request {request.request_id}: token id {max(request.prompt_ids)} is outside {model.name}'s "
                f"vocabulary; allowed: 0 to {shape.vocab_size - 1}"
            )
    if len(per_request) > 3:
        per_request[3:] = [f"… and {len(per_request) - 3} more requests"]
    return problems + per_request
