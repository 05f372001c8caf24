"""What the user asks for: one flat table of fields, each a pytest option, an ini value and a CLI option.

A preset gives every field a value; what the user says wins. `Suite` turns settings into `RunSpec`s.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError
from pydantic import model_validator as validate_model
from typing_extensions import Self

from gpt_parallel.base.errors import SpecError
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import AttentionChoice, TimeoutSeconds, WhenBusy


def _join_numbers(value: Any) -> Any:
    """4 or [1, 2, 4], as a configuration file may have them, as text."""
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return ",".join(map(str, numbers))
    return value


def _is_numbers(text: str, largest: int) -> bool:
    return all(part.isascii() and part.isdigit() and 1 <= int(part) <= largest for part in text.split(","))


def _check_device_counts(text: str) -> str:
    if not _is_numbers(text, 9999):
        raise ValueError("must be device counts from 1 to 9999 with commas between them, such as 1,2,4")
    return text


def _check_batch_sizes(text: str) -> str:
    if not _is_numbers(text, 1_000_000):
        raise ValueError("must be batch sizes from 1 to 1000000 with commas between them, such as 1,4,16")
    return text


_DeviceCounts = Annotated[str, BeforeValidator(_join_numbers), AfterValidator(_check_device_counts)]
_BatchSizes = Annotated[str, BeforeValidator(_join_numbers), AfterValidator(_check_batch_sizes)]


class Settings(Frozen):
    """Every choice a user has. Field descriptions are the options' help texts."""

    model: str = Field(
        "gpt2", description="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, gpt2-nano, a directory or hub id"
    )
    weights: Literal["checkpoint", "random", "auto"] = Field(
        "checkpoint",
        description="checkpoint: real ones, fetched if need be; random: seeded; auto: real if on this disk",
    )
    weights_seed: NonNegativeInt = Field(0, description="seed of random weights")
    offline: bool = Field(False, description="never ask the hub; only use files on this disk")

    prompts: str = Field(
        "builtin", description="builtin (20 shipped prompts), random (seeded ids) or a JSON Lines file"
    )
    num_samples: PositiveInt | None = Field(None, description="how many requests; unset: as many as there are prompts")
    batch_size: PositiveInt = Field(4, description="requests per batch and replica")
    batch_sizes: _BatchSizes | None = Field(
        None, description="every case once with each of these batch sizes, e.g. 1,4,16; unset: with batch_size"
    )
    prompt_tokens: PositiveInt | None = Field(
        None, description="cut or repeat every prompt to so many tokens; unset: each prompt's own length"
    )
    max_length: PositiveInt | None = Field(
        None, description="tokens to generate per request; unset: each prompt's own max_length (64 by default)"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="sampling temperature; 0 is greedy")
    top_k: NonNegativeInt = Field(0, description="sample among the k best tokens only; 0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample among the smallest set with this probability"
    )
    repetition_penalty: PositiveFloat = Field(1.0, description="divide scores of tokens already seen; 1: none")
    seed: NonNegativeInt = Field(0, description="seed of sampling and of random prompts")

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA GPUs where there are any, else CPU cores"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="float32, bfloat16, float16; auto: float32 on CPU, bfloat16 (or float16 on older GPUs) on CUDA",
    )
    backend: Literal["auto", "gloo", "nccl", "shm"] = Field(
        "auto", description="auto: nccl on CUDA, shm (shared memory) between x86 CPU ranks, gloo elsewhere"
    )
    linear: Literal["auto", "plain", "packed"] = Field(
        "auto", description="CPU products: plain, weights packed by oneDNN, or auto: packed for all but tiny models"
    )
    attention: AttentionChoice = Field(
        "auto",
        description="attention kernel: flash, math, on CUDA efficient and cudnn (which does not repeat), "
        "or auto: torch's choice among those that repeat",
    )
    decode: Literal["auto", "eager", "graph"] = Field(
        "auto", description="how tokens are decoded on CUDA: as captured graphs (auto) or one kernel at a time (eager)"
    )
    cores_per_rank: PositiveInt = Field(1, description="CPU cores each rank is pinned to")
    oversubscribe: bool = Field(
        False, description="let ranks share a GPU where there are more ranks than GPUs (over gloo)"
    )
    when_busy: WhenBusy = Field(
        "auto",
        description="GPUs or cores that another run uses: wait, refuse or share; auto: wait for GPUs, share cores",
    )
    warmup: PositiveInt = Field(1, description="untimed passes before the timed rounds; the first is the one verified")
    num_iterations: PositiveInt = Field(3, description="timed passes over all requests, in each launch")
    launches: PositiveInt = Field(1, description="fresh launches of each case; gates need at least 3")
    launcher: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description='start ranks by this, maybe on several machines: "torchrun --nnodes=2 --nproc-per-node=2 …", '
        '"srun …", "mpirun …"; {num_gpus} in it stands for a case\'s number of ranks',
    )
    launcher_address: str | None = Field(
        None, description="HOST:PORT at which the launcher's ranks reach this machine; unset: its name, any free port"
    )
    log_dir: str = Field("reports/logs", description="where the logs of all ranks are kept when a run fails")
    timeout_s: TimeoutSeconds = Field(600.0, description="deadline of one launch, in seconds")
    verify: bool = Field(True, description="compare every token with those of a single-device run")
    judge: Literal["transformers", "engine"] = Field(
        "transformers",
        description="who checks the single-device reference: transformers, or engine (no independent check)",
    )
    telemetry: bool = Field(True, description="read utilisation, memory, power and the devices' peak rates")
    breakdown: bool = Field(False, description="show where the time goes, by an extra pass after the timed rounds")
    profile: str | None = Field(
        None, description="directory for each rank's torch profiler trace of an extra pass, and its top operators"
    )

    strategy: str | None = Field(
        None, description="only these strategies, with commas between them; unset: all that exist"
    )
    num_gpus: _DeviceCounts | None = Field(
        None, description="device counts of the cases, e.g. 1,2,4; unset: those, and 8 where there are 8 GPUs"
    )
    tensor_parallel_size: PositiveInt | None = Field(
        None, description="custom mesh instead of the strategies: tp degree"
    )
    pipeline_parallel_size: PositiveInt | None = Field(
        None, description="custom mesh instead of the strategies: pp degree"
    )
    data_parallel_size: PositiveInt | None = Field(None, description="custom mesh instead of the strategies: dp degree")

    @validate_model(mode="after")
    def _strategy_or_mesh(self) -> Self:
        if self.strategy and self.has_custom_mesh:
            raise ValueError("give either a strategy or parallel sizes, not both")
        return self

    @property
    def strategies(self) -> tuple[str, ...]:
        """The asked strategies; empty where none were given."""
        return tuple(dict.fromkeys(name.strip() for name in (self.strategy or "").split(",") if name.strip()))

    @property
    def device_counts(self) -> tuple[int, ...]:
        """The asked device counts; empty where none were given."""
        return tuple(sorted({int(count) for count in (self.num_gpus or "").split(",") if count}))

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """The asked batch sizes; empty where cases have `batch_size` only."""
        return tuple(sorted({int(size) for size in (self.batch_sizes or "").split(",") if size}))

    @property
    def has_custom_mesh(self) -> bool:
        return any((self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size))


class Option(NamedTuple):
    """How a field is asked for: `--NAME METAVAR`, or a bare `--NAME` that stands for `constant`."""

    field: str
    name: str
    help: str
    metavar: str | None
    constant: bool | None


def options() -> Iterator[Option]:
    """One option for each field; a field that is true unless the user says otherwise becomes `no-NAME`."""
    for field, info in Settings.model_fields.items():
        name, text = field.removesuffix("_s").replace("_", "-"), info.description or ""
        if info.annotation is not bool:
            yield Option(field, name, text, field.rsplit("_", 1)[-1].upper(), None)
        elif info.default:
            yield Option(field, f"no-{name}", f"do not {text}", None, False)
        else:
            yield Option(field, name, text, None, True)


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "model": "gpt2-nano",
        "weights": "auto",
        "num_samples": 8,
        "batch_size": 2,
        "prompt_tokens": 32,
        "max_length": 8,
        "timeout_s": 120.0,
    },
    "cpu": {
        "model": "gpt2",
        "weights": "auto",
        "num_samples": 16,
        "batch_size": 4,
        "prompt_tokens": 64,
        "max_length": 16,
        "timeout_s": 300.0,
    },
    "xl": {
        "model": "gpt2-xl",
        "weights": "auto",
        "num_samples": 60,
        "batch_size": 4,
        "prompt_tokens": 256,
        "max_length": 64,
        "timeout_s": 1200.0,
    },
}


def make_settings(preset: str, given: Mapping[str, Any], configured: Mapping[str, Any] | None = None) -> Settings:
    """A preset, over it what is `configured`, over both what the user has `given` now.

    None is no value in `given` and a value in `configured`, where a file may say null. Raises SpecError, which names
    every wrong value and what is allowed.
    """
    if preset not in PRESETS:
        raise SpecError(f"unknown preset {preset!r}; allowed: {', '.join(PRESETS)}")
    chosen = {**(configured or {}), **{name: value for name, value in given.items() if value is not None}}
    defaults = dict(PRESETS[preset])
    if "prompts" in chosen and chosen["prompts"] not in ("builtin", "random"):
        # The user's own prompts keep their own number and lengths.
        for field in ("num_samples", "prompt_tokens", "max_length"):
            defaults.pop(field, None)
    try:
        return Settings.model_validate({**defaults, **chosen})
    except ValidationError as error:
        raise SpecError.from_validation(error) from error
