"""Finds a model: a known name, a Hugging Face directory or a hub id, and where its weights are."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError, quoted, see
from gpt_parallel.inputs.checkpoint import inspect_checkpoint, read_architecture, weight_files
from gpt_parallel.inputs.model_directory import describe_file
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import architecture_of, architecture_problem
from gpt_parallel.schema.model import ModelSpec

Weights = Literal["checkpoint", "random", "auto"]


def _gpt2(
    num_layers: int, num_heads: int, hidden_size: int, vocab_size: int = 50257, max_positions: int = 1024
) -> Architecture:
    return Architecture.model_validate(
        {
            "num_layers": num_layers,
            "num_heads": num_heads,
            "hidden_size": hidden_size,
            "vocab_size": vocab_size,
            "max_positions": max_positions,
        }
    )


def _llama3(factor: float, original_positions: int) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {**scaling, "original_max_position_embeddings": original_positions}


def _qwen3(num_layers: int, heads: int, kv_heads: int, width: int, inner: int, **changes: Any) -> Architecture:
    return architecture_of(
        {
            **{"model_type": "qwen3", "num_hidden_layers": num_layers, "hidden_size": width},
            **{"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128},
            **{"intermediate_size": inner, "vocab_size": 151_936, "max_position_embeddings": 40_960},
            **{"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": True, **changes},
        }
    )


# Sizes as in each model's config.json on the Hugging Face hub.
ARCHITECTURES = {
    "gpt2": _gpt2(12, 12, 768),
    "gpt2-medium": _gpt2(24, 16, 1024),
    "gpt2-large": _gpt2(36, 20, 1280),
    "gpt2-xl": _gpt2(48, 25, 1600),
    "distilgpt2": _gpt2(6, 12, 768),
    "gpt2-nano": _gpt2(4, 5, 160, vocab_size=4096, max_positions=256),
    "llama-nano": architecture_of(
        {
            **{"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 192, "intermediate_size": 512},
            **{"num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 4096, "max_position_embeddings": 256},
            **{"rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 500_000.0, **_llama3(8.0, 64)}},
        }
    ),
    "llama-3.2-1b": architecture_of(
        {
            **{"model_type": "llama", "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5},
            **{"max_position_embeddings": 131_072, "tie_word_embeddings": True},
            **{"rope_parameters": {"rope_theta": 500_000.0, **_llama3(32.0, 8192)}},
        }
    ),
    "llama-3.1-8b": architecture_of(
        {
            **{"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14_336},
            **{"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "rms_norm_eps": 1e-5},
            **{"max_position_embeddings": 131_072},
            **{"rope_parameters": {"rope_theta": 500_000.0, **_llama3(8.0, 8192)}},
        }
    ),
    "qwen3-nano": _qwen3(4, 8, 2, 128, 384, head_dim=32, vocab_size=4096, max_position_embeddings=256),
    "qwen3-0.6b": _qwen3(28, 16, 8, 1024, 3072),
    "qwen3-8b": _qwen3(36, 32, 8, 4096, 12_288, tie_word_embeddings=False),
}
# Models whose trained weights are files of this package: `benchmarks/train_nano.py` made them.
_SHIPPED = {"gpt2-nano": Path(__file__).parent / "data" / "gpt2-nano"}
# Repositories a known name may have been downloaded from, the current one first. The other nano models have no weights.
_REPOSITORIES: dict[str, tuple[str, ...]] = {
    "gpt2": ("openai-community/gpt2", "gpt2"),
    "gpt2-medium": ("openai-community/gpt2-medium", "gpt2-medium"),
    "gpt2-large": ("openai-community/gpt2-large", "gpt2-large"),
    "gpt2-xl": ("openai-community/gpt2-xl", "gpt2-xl"),
    "distilgpt2": ("distilbert/distilgpt2", "distilgpt2"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B",),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B",),
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B",),
    "qwen3-8b": ("Qwen/Qwen3-8B",),
}
_HUB_FILES = [
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


def register_model(
    name: str, architecture: Architecture | Mapping[str, Any], repositories: tuple[str, ...] = ()
) -> None:
    """Add a model of your own by name; `repositories` are the hub ids that its weights may be had from, best first.

    Instead of an `Architecture` give what is in a `config.json` if you like, with its `model_type`.

    Without one it has random weights only. Call this from a conftest.py, at import, for `--gpt-model` to know it.
    Raises ValueError if the name is taken, or would be taken for a path or hub id.
    """
    if name in ARCHITECTURES:
        raise ValueError(f"model {name!r} is already registered")
    if not name or "/" in name or name.startswith((".", "~")):
        raise ValueError(f"model name {name!r} must not look like a path or hub id")
    if not isinstance(architecture, Architecture):
        architecture = architecture_of(architecture)
    if problem := architecture_problem(architecture):
        raise ValueError(f"model {name!r}: {problem}")
    ARCHITECTURES[name] = architecture
    if repositories:
        _REPOSITORIES[name] = repositories


def shipped_weights(name: str) -> Path | None:
    """The directory of trained weights that come with this package; only weights "checkpoint" takes them."""
    return _SHIPPED.get(name)


def has_published_weights(name: str) -> bool:
    """Whether trained weights of a known model can be downloaded."""
    return name in _REPOSITORIES


def resolve_model(name: str, weights: Weights, seed: int = 0, *, offline: bool = False) -> ModelSpec:
    """A complete `ModelSpec` for a name, directory or hub id.

    `weights`: "checkpoint" needs the real ones (downloaded from the hub unless `offline`), "random" makes seeded ones,
    "auto" takes the real ones where they are on this disk already and random ones otherwise.
    Raises SpecError with what is missing and what to do.
    """
    try:
        return _resolve(name, weights, seed, offline)
    except ValidationError as error:  # for one, a directory whose name is not UTF-8
        raise SpecError.from_validation(error, prefix=f"model {quoted(name)}: ") from error


def _resolve(name: str, weights: Weights, seed: int, offline: bool) -> ModelSpec:
    directory = _find_directory(name, weights, offline)
    if directory is None:
        return ModelSpec(name=name, architecture=ARCHITECTURES[name], weights="random", seed=seed)
    architecture = read_architecture(directory)
    if weights == "random":
        return ModelSpec(
            name=name, architecture=architecture, weights="random", seed=seed, directory=str(directory.resolve())
        )
    checkpoint = inspect_checkpoint(directory, architecture)
    return ModelSpec(
        name=name,
        architecture=architecture,
        weights="checkpoint",
        directory=str(directory.resolve()),
        files=checkpoint.files,
        key_prefix=checkpoint.key_prefix,
    )


def _find_directory(name: str, weights: Weights, offline: bool) -> Path | None:
    """The model's directory on this disk; None for a known architecture that will run with random weights."""
    if (path := _directory(name)) is not None:
        return path
    known = name in ARCHITECTURES
    path = Path(name).expanduser()
    if not known and path.is_file():
        what = describe_file(path) or "a file, not a directory with config.json and model.safetensors"
        raise SpecError(f"model {quoted(name)}: this is {what}")
    if not known and (name.startswith(("/", ".", "~")) or name.count("/") != 1):
        raise SpecError(
            f"model {quoted(name)}: no such directory, and not a known model ({', '.join(ARCHITECTURES)}) "
            "or hub id such as 'owner/name'" + see("model")
        )
    if name in _SHIPPED:
        return _SHIPPED[name] if weights == "checkpoint" else None  # auto is random: it shows more mistakes
    cached = _cached(_REPOSITORIES.get(name, () if known else (name,)))
    if cached is not None or (known and weights in ("random", "auto")):
        return cached
    if known and not has_published_weights(name):
        raise SpecError(f"model {name!r} has no trained weights anywhere; use weights 'random'")
    return _download(_REPOSITORIES.get(name, (name,))[0], name, offline)


def _directory(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if stat.S_ISDIR(path.stat().st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SpecError(f"model {quoted(name)}: cannot be read ({error.strerror})") from error
    except (ValueError, RuntimeError) as error:  # a name that no file can have; no such user
        raise SpecError(f"model {quoted(name)}: {error}") from error


def _cached(repositories: tuple[str, ...]) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    for repository in repositories:
        try:
            directory = Path(snapshot_download(repository, allow_patterns=_HUB_FILES, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            continue
        if _is_complete(directory):
            return directory
    return None


def _is_complete(directory: Path) -> bool:
    """Whether a snapshot holds a configuration and all files of its weights; a download may have been cut off."""
    try:
        return bool(weight_files(directory)) and (directory / "config.json").is_file()
    except SpecError:
        return False


def _download(repository: str, name: str, offline: bool) -> Path:
    remedy = f"pass a local directory, or use weights 'random' to run {name}'s architecture without them{see('model')}"
    if offline:
        raise SpecError(
            f"model {name!r}: weights are not on this disk, and offline forbids a download; {remedy}{see('model')}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpecError(
            f"model {name!r}: could not be fetched from the hub ({reason}); {remedy}{see('model')}"
        ) from error
