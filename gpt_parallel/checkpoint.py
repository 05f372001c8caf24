"""Checks a Hugging Face GPT-2 directory without torch, so that a bad one is refused before any rank starts."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpt_parallel.spec import Architecture, SpecError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_UNSUPPORTED = {
    # key in config.json: the only value this engine computes
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


class Checkpoint(NamedTuple):
    """The safetensors files of a directory, and what their keys start with ('' or 'transformer.')."""

    files: tuple[str, ...]
    key_prefix: str


def read_architecture(directory: Path) -> Architecture:
    """The architecture in `config.json`; SpecError if it is missing, malformed or not a plain GPT-2."""
    path = directory / "config.json"
    config = _read_json(path)
    if config.get("model_type") != "gpt2":
        raise SpecError(f"{path}: model_type is {config.get('model_type')!r}; only 'gpt2' models can be run")
    for key, supported in _UNSUPPORTED.items():
        if config.get(key, supported) != supported:
            raise SpecError(f"{path}: {key} = {config[key]!r} is not supported; only {supported!r} is")
    fields = {name: config[name] for name in Architecture.model_fields if config.get(name) is not None}
    if "n_embd" in fields and "n_inner" not in fields and isinstance(fields["n_embd"], int):
        fields["n_inner"] = 4 * fields["n_embd"]
    try:
        return Architecture.model_validate(fields)
    except ValidationError as error:
        raise SpecError.from_validation(error, prefix=f"{path}: ") from error


def inspect_checkpoint(directory: Path, shape: Architecture) -> Checkpoint:
    """Find and check the weights: every tensor present, of the right shape, wholly inside its file."""
    files = _weight_files(directory)
    found: dict[str, tuple[Path, Any]] = {}
    for path in files:
        for name, entry in _read_header(path).items():
            found[name] = (path, entry)
    prefix = "transformer." if "transformer.wte.weight" in found else ""
    problems = []
    for name, expected in shape.tensor_shapes.items():
        if prefix + name not in found:
            problems.append(f"{directory}: tensor {name!r} is missing from {', '.join(p.name for p in files)}")
            continue
        path, entry = found[prefix + name]
        if tuple(entry["shape"]) != expected:
            problems.append(
                f"{path}: tensor {name!r} has shape {tuple(entry['shape'])}, but config.json implies {expected}"
            )
        if entry["dtype"] not in _ITEM_BYTES:
            problems.append(f"{path}: tensor {name!r} has dtype {entry['dtype']}; allowed: {', '.join(_ITEM_BYTES)}")
    if problems:
        raise SpecError(problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else []))
    return Checkpoint(tuple(path.name for path in files), prefix)


def _weight_files(directory: Path) -> list[Path]:
    if (directory / INDEX_NAME).is_file():
        weight_map = _read_json(directory / INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise SpecError(f"{directory / INDEX_NAME}: has no weight_map from tensor names to file names")
        names = sorted(set(weight_map.values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise SpecError(f"{directory / INDEX_NAME}: {outside[0]!r} points outside the directory")
    elif (directory / SINGLE_NAME).is_file():
        names = [SINGLE_NAME]
    else:
        pickled = [
            name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (directory / name).exists()
        ]
        hint = f"; {pickled[0]} is pickled and never loaded, convert it to safetensors" if pickled else ""
        raise SpecError(f"{directory}: no {SINGLE_NAME} or {INDEX_NAME}{hint}")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise SpecError(f"{directory}: {', '.join(missing)} named in {INDEX_NAME} but not there")
    return [directory / name for name in names]


def _read_header(path: Path) -> dict[str, Any]:
    """A safetensors header, its offsets checked against the file's size.

    Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors, README "Format").
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise SpecError(f"{path}: truncated or not a safetensors file (header of {length} bytes in {size})")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: the safetensors header is not valid JSON ({error})") from error
    if not isinstance(header, dict):
        raise SpecError(f"{path}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(path, name, entry, size - 8 - length)
    _check_covered(path, header, size - 8 - length)
    return header


def _check_covered(path: Path, header: dict[str, Any], data_bytes: int) -> None:
    """The format wants every byte of the data to belong to one tensor; readers refuse anything else."""
    covered = 0
    for begin, end in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if begin != covered:
            raise SpecError(f"{path}: tensors overlap or leave a gap at byte {min(begin, covered)} (download it again)")
        covered = end
    if covered != data_bytes:
        raise SpecError(
            f"{path}: {data_bytes - covered} bytes after the last tensor belong to none (download it again)"
        )


def _check_entry(path: Path, name: str, entry: Any, data_bytes: int) -> None:
    try:
        begin, end = entry["data_offsets"]
        shape, dtype = entry["shape"], entry["dtype"]
        count = 1
        for dimension in shape:
            count *= dimension
        well_formed = 0 <= begin <= end and all(isinstance(d, int) and d >= 0 for d in shape)
        size_fits = dtype not in _ITEM_BYTES or end - begin == count * _ITEM_BYTES[dtype]
    except (TypeError, ValueError, KeyError) as error:
        raise SpecError(f"{path}: tensor {name!r} has a malformed header entry") from error
    if not (well_formed and size_fits):
        raise SpecError(f"{path}: tensor {name!r} has offsets {begin}–{end} that do not fit its shape {shape}")
    if end > data_bytes:
        raise SpecError(f"{path}: truncated; tensor {name!r} ends at byte {end} of {data_bytes} (download it again)")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: must hold a JSON object")
    return value
