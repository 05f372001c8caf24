"""The user's settings: one flat table of fields, each a pytest option, an ini value and a CLI option.

A preset gives every field a value, which the user's own values override. `Suite` turns settings into `RunSpec`s.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.suggestions import did_you_mean
from gpt_parallel.inputs.option_groups import GROUPS, METAVARS
from gpt_parallel.schema.frozen import Frozen
from gpt_parallel.schema.run import AttentionChoice, TimeoutSeconds, WhenBusy


def _join_numbers(value: Any) -> Any:
    """Convert 4 or [1, 2, 4], as a configuration file may have them, to text."""
    numbers = value if isinstance(value, list) else [value]
    if all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
        return ",".join(map(str, numbers))
    return value


def _is_numbers(text: str, largest: int) -> bool:
    return all(part.isascii() and part.isdigit() and 1 <= int(part) <= largest for part in text.split(","))


def _check_device_counts(text: str) -> str:
    if not _is_numbers(text, 9999):
        raise ValueError("must be comma-separated device counts from 1 to 9999, such as 1,2,4")
    return text


def _check_batch_sizes(text: str) -> str:
    if not _is_numbers(text, 1_000_000):
        raise ValueError("must be comma-separated batch sizes from 1 to 1000000, such as 1,4,16")
    return text


_DeviceCounts = Annotated[str, BeforeValidator(_join_numbers), AfterValidator(_check_device_counts)]
_BatchSizes = Annotated[str, BeforeValidator(_join_numbers), AfterValidator(_check_batch_sizes)]


class Settings(Frozen):
    """All settings of a run or session. Field descriptions are the options' help texts."""

    model: str = Field(
        "gpt2", description="gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, gpt2-nano, a directory or a hub id"
    )
    weights: Literal["checkpoint", "random", "auto"] = Field(
        "checkpoint",
        description="checkpoint: trained, downloaded if needed; random: seeded; auto: trained if on this disk",
    )
    weights_seed: NonNegativeInt = Field(0, description="seed of random weights")
    offline: bool = Field(False, description="never contact the hub; use only files on this disk")

    prompts: str = Field(
        "builtin",
        description="builtin (20 shipped prompts), random (seeded ids) or a file: JSON Lines, JSON, CSV, Parquet, text",
    )
    num_samples: PositiveInt | None = Field(None, description="number of requests; unset: one per prompt")
    batch_size: PositiveInt = Field(4, description="requests per batch and replica")
    batch_sizes: _BatchSizes | None = Field(
        None, description="run every case with each of these batch sizes, e.g. 1,4,16; unset: with batch_size"
    )
    prompt_tokens: PositiveInt | None = Field(
        None, description="cut or repeat every prompt to this many tokens; unset: each prompt's own length"
    )
    max_length: PositiveInt | None = Field(
        None, description="tokens to generate per request; unset: each prompt's own max_length (64 by default)"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="sampling temperature; 0 is greedy")
    top_k: NonNegativeInt = Field(0, description="sample only among the k most probable tokens; 0: all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="sample only among the smallest set of tokens with this total probability"
    )
    repetition_penalty: PositiveFloat = Field(
        1.0, description="factor that lowers the scores of earlier tokens; 1: none"
    )
    seed: NonNegativeInt = Field(0, description="seed of sampling and of random prompts")

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA GPUs if there are any, else CPU cores"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="float32, bfloat16, float16; auto: float32 on CPU, bfloat16 (or float16 on older GPUs) on CUDA",
    )
    backend: Literal["auto", "gloo", "nccl", "shm"] = Field(
        "auto", description="auto: nccl on CUDA, shm (shared memory) between x86 CPU ranks, gloo elsewhere"
    )
    linear: Literal["auto", "plain", "packed"] = Field(
        "auto", description="linear layers on CPU: plain, packed (by oneDNN), or auto: packed for all but tiny models"
    )
    attention: AttentionChoice = Field(
        "auto",
        description="attention kernel: flash, math, on CUDA also efficient and cudnn (not repeatable), "
        "or auto: torch's choice among the repeatable ones",
    )
    decode: Literal["auto", "eager", "graph"] = Field(
        "auto", description="decoding on CUDA: by captured graphs (auto) or one kernel at a time (eager)"
    )
    cores_per_rank: PositiveInt = Field(1, description="CPU cores each rank is pinned to")
    oversubscribe: bool = Field(
        False, description="let ranks share a GPU if there are more ranks than GPUs (over gloo)"
    )
    when_busy: WhenBusy = Field(
        "auto",
        description="if another run uses the GPUs or cores: wait, refuse or share; auto: wait for GPUs, share cores",
    )
    warmup: PositiveInt = Field(1, description="untimed passes before the timed rounds; the first one is verified")
    num_iterations: PositiveInt = Field(3, description="timed passes over all requests, in each launch")
    launches: PositiveInt = Field(1, description="fresh launches of each case; gates need at least 3")
    launcher: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description='command that starts the ranks, maybe on several machines: "torchrun --nnodes=2 '
        '--nproc-per-node=2 …", "srun …", "mpirun …"; {num_gpus} in it is replaced by a case\'s number of ranks',
    )
    launcher_address: str | None = Field(
        None,
        description="HOST:PORT at which the launcher's ranks reach this machine; unset: its name and any free port",
    )
    log_dir: str = Field("reports/logs", description="directory for the logs of all ranks of a failed run")
    timeout_s: TimeoutSeconds = Field(600.0, description="deadline of one launch, in seconds")
    verify: bool = Field(True, description="compare every token with those of a single-device run")
    judge: Literal["transformers", "engine"] = Field(
        "transformers",
        description="check of the single-device reference: by transformers, or engine (no independent check)",
    )
    telemetry: bool = Field(True, description="read utilisation, memory, power and the devices' peak rates")
    breakdown: bool = Field(
        False, description="show where the time goes, measured in an extra pass after the timed rounds"
    )
    profile: str | None = Field(
        None, description="directory for each rank's torch profiler trace and top operators, from an extra pass"
    )

    strategy: str | None = Field(None, description="comma-separated strategies; unset: all")
    num_gpus: _DeviceCounts | None = Field(
        None, description="comma-separated device counts of the cases; unset: 1,2,4, and 8 if there are 8 GPUs"
    )
    tensor_parallel_size: PositiveInt | None = Field(
        None, description="tp degree of the chosen strategy, or of a custom mesh if none is chosen"
    )
    pipeline_parallel_size: PositiveInt | None = Field(
        None, description="pp degree of the chosen strategy, or of a custom mesh if none is chosen"
    )
    data_parallel_size: PositiveInt | None = Field(
        None, description="dp degree of the chosen strategy, or of a custom mesh if none is chosen"
    )

    @property
    def strategies(self) -> tuple[str, ...]:
        """The chosen strategies; empty if none were given."""
        return tuple(dict.fromkeys(name.strip() for name in (self.strategy or "").split(",") if name.strip()))

    @property
    def device_counts(self) -> tuple[int, ...]:
        """The chosen device counts; empty if none were given."""
        return tuple(sorted({int(count) for count in (self.num_gpus or "").split(",") if count}))

    @property
    def all_batch_sizes(self) -> tuple[int, ...]:
        """The chosen batch sizes; empty if cases have `batch_size` only."""
        return tuple(sorted({int(size) for size in (self.batch_sizes or "").split(",") if size}))

    @property
    def has_degrees(self) -> bool:
        """Whether the degrees of meshes are given, instead of following from the strategies' rules."""
        return any((self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size))


class Option(NamedTuple):
    """The option for a field: `--NAME METAVAR`, or a bare `--NAME` that sets it to `constant`. `group` is for help."""

    group: str
    field: str
    name: str
    help: str
    metavar: str | None
    constant: bool | None


def options() -> Iterator[Option]:
    """One option for each field, group by group; a field that is true by default becomes `no-NAME`."""
    for group, fields in GROUPS.items():
        for field in fields:
            info = Settings.model_fields[field]
            name, text = field.removesuffix("_s").replace("_", "-"), info.description or ""
            if info.annotation is not bool:
                metavar = METAVARS.get(field, field.rsplit("_", 1)[-1].upper())
                yield Option(group, field, name, text, metavar, None)
            elif info.default:
                yield Option(group, field, f"no-{name}", f"do not {text}", None, False)
            else:
                yield Option(group, field, name, text, None, True)


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
    """Make settings from a preset, the `configured` values that override it, and the `given` ones that override both.

    In `given` None means no value; in `configured` it is a value, because a file may say null. Raises SpecError, which
    names every wrong value and what is allowed.
    """
    if preset not in PRESETS:
        raise SpecError(f"unknown preset {preset!r}; allowed: {', '.join(PRESETS)}{did_you_mean(preset, PRESETS)}")
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
