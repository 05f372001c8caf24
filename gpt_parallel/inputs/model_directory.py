"""Recognises directories and files that are not a model this package can run, and names the remedy."""

import json
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path

_MAX_ENTRIES = 10_000
_TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"}
_TRAINING_FILES = {"optimizer.pt", "optimizer.bin", "scheduler.pt", "trainer_state.json", "rng_state.pth"}


def describe_file(path: Path) -> str | None:
    """What a file that was given as a model is, with the remedy; None if it is not known."""
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return "a GGUF file of llama.cpp; give the Hugging Face directory that it was converted from"
    if suffix == ".onnx":
        return "an ONNX export; give the Hugging Face directory that it was exported from"
    if suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        return "a file of weights; give the directory that has it and its config.json"
    return None


def describe_directory(directory: Path) -> str | None:
    """What a directory without a runnable model is, with the remedy; None if it is not known."""
    names = _names(directory)
    return next((text for test in _KINDS if (text := test(directory, names)) is not None), None)


def _names(directory: Path) -> set[str]:
    with suppress(OSError):
        return {entry.name for entry in islice(directory.iterdir(), _MAX_ENTRIES)}
    return set()


def _adapter(directory: Path, names: set[str]) -> str | None:
    if not {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"} & names:
        return None
    base = ""
    with suppress(OSError, ValueError):
        text = (directory / "adapter_config.json").read_bytes()[: 1 << 20]
        found = json.loads(text).get("base_model_name_or_path")
        base = f" of {found!r}" if isinstance(found, str) and len(found) < 200 else ""
    return (
        f"an adapter (LoRA or the like){base}, not a whole model; merge it into its base model (peft's "
        "merge_and_unload, then save_pretrained), or give the base model"
    )


def _export(directory: Path, names: set[str]) -> str | None:
    for name in sorted(names):
        if name.lower().endswith((".gguf", ".onnx")) and "config.json" not in names:
            return f"{name} is {describe_file(Path(name))}"
    return None


def _sharded_training(directory: Path, names: set[str]) -> str | None:
    fsdp = ".metadata" in names and any(name.endswith(".distcp") for name in names)
    fsdp = fsdp or any(name.startswith("pytorch_model_fsdp") for name in names)
    deepspeed = "zero_to_fp32.py" in names or any(name.startswith(("global_step", "mp_rank_")) for name in names)
    if fsdp:
        return (
            "a sharded training checkpoint of FSDP; combine it into safetensors (accelerate merge-weights, or "
            "save_pretrained of the loaded model)"
        )
    if deepspeed and "model.safetensors" not in names:
        return (
            "a sharded training checkpoint of DeepSpeed; combine it (python zero_to_fp32.py . merged "
            "--safe_serialization) and add config.json"
        )
    return None


def _training(directory: Path, names: set[str]) -> str | None:
    if not _TRAINING_FILES & names:
        return None
    return (
        "a training checkpoint (optimizer and scheduler states) without the model; give the directory that "
        "save_pretrained or Trainer.save_model wrote"
    )


def _checkpoints_inside(directory: Path, names: set[str]) -> str | None:
    inside = sorted(name for name in names if name.startswith("checkpoint-") and name[11:].isdigit())
    return f"a training run's output with {len(inside)} checkpoints; give one, such as {inside[-1]}" if inside else None


def _tokenizer(directory: Path, names: set[str]) -> str | None:
    if _TOKENIZER_FILES & names and not {"config.json", "model.safetensors"} & names:
        return "a tokenizer alone; give the directory that has config.json and model.safetensors too"
    return None


_KINDS: tuple[Callable[[Path, set[str]], str | None], ...] = (
    *(_adapter, _export, _sharded_training, _training, _checkpoints_inside, _tokenizer),
)
