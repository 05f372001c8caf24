"""Checks a Hugging Face model directory without torch, so that a bad one is refused before any rank starts."""

import os
import re
import stat
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from gpt_parallel.base.errors import SpecError, quoted, refuse, shorten
from gpt_parallel.base.untrusted_files import kind, parse_json, read_whole
from gpt_parallel.inputs.model_directory import describe_directory
from gpt_parallel.inputs.safetensors_file import ITEM_BYTES, StoredTensor, check_finite, read_header
from gpt_parallel.schema.architecture import Architecture
from gpt_parallel.schema.families.registry import architecture_of, family_of, tensor_shapes

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_PICKLED_NAMES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MAX_CONFIG_BYTES = 1 << 20
_MAX_INDEX_BYTES = 16 << 20
_LAYER = re.compile(r"(?:^|\.)\d+\.")  # a layer's number in a tensor's name


class Checkpoint(NamedTuple):
    """The safetensors files of a directory, and the prefix of all their keys, which may be empty."""

    files: tuple[str, ...]
    key_prefix: str


def read_architecture(directory: Path) -> Architecture:
    """The architecture in `config.json`; SpecError if it is missing, malformed or not one of the known families."""
    path = directory / "config.json"
    if not path.exists() and (what := describe_directory(directory)) is not None:
        raise SpecError(f"{directory}: this is {what}")
    config = _read_json(path, _MAX_CONFIG_BYTES, "model configuration")
    if config.get("auto_map"):
        raise SpecError(
            f"{path}: auto_map names Python code that comes with the model; such code is never run "
            "(remove auto_map if the model is one of transformers' own)"
        )
    try:
        return architecture_of(config)
    except SpecError as error:
        raise SpecError([f"{path}: {problem}" for problem in error.problems]) from error
    except ValidationError as error:
        raise SpecError.from_validation(error, prefix=f"{path}: ") from error


def inspect_checkpoint(directory: Path, architecture: Architecture) -> Checkpoint:
    """Find and check the weights: every tensor there once, of the right shape, wholly inside its file, and finite."""
    files = weight_files(directory)
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in found:
                raise SpecError(f"{path}: tensor {quoted(name)} is in {found[name].path.name} too")
            found[name] = tensor
    shapes = tensor_shapes(architecture)
    family = family_of(architecture)
    prefix = _prefix_of(found, shapes, family.key_prefix)
    keys = {name: family.key(prefix, name) for name in shapes}
    missing = [name for name, key in keys.items() if key not in found]
    problems = [_missing(directory, missing, shapes, found, files)] if missing else []
    for name, expected in shapes.items():
        stored = found.get(keys[name])
        if stored is None:
            continue
        if stored.shape != expected:
            problems.append(
                f"{stored.path}: tensor {name!r} has shape {stored.shape}, but config.json implies {expected}"
            )
        if stored.dtype not in ITEM_BYTES:
            problems.append(
                f"{stored.path}: tensor {name!r} has dtype {stored.dtype}; allowed: {', '.join(ITEM_BYTES)}"
            )
    refuse(problems)
    used = [found[key] for key in keys.values()]
    for path in files:
        check_finite(path, [tensor for tensor in used if tensor.path == path])
    return Checkpoint(tuple(path.name for path in files), prefix)


def _prefix_of(found: Collection[str], shapes: Collection[str], usual: str) -> str:
    """What stands before the tensors' names: nothing, the family's usual prefix, or a wrapper's such as `module.`."""
    marker = max(shapes, key=len)  # a long name is the end of no other
    wrappers = sorted({name.removesuffix(marker) for name in found if name.endswith(f".{marker}")}, key=len)
    candidates = ("", usual, *wrappers)
    counts = {prefix: sum(prefix + name in found for name in shapes) for prefix in candidates}
    return max(candidates, key=lambda prefix: counts[prefix])


def _missing(
    directory: Path, missing: Sequence[str], shapes: Collection[str], found: Collection[str], files: Sequence[Path]
) -> str:
    """How many tensors are missing, which, and the likely reason."""
    names = _listed([path.name for path in files])
    if len(missing) == 1:
        return f"{directory}: tensor {missing[0]!r} is missing from {names}"
    text = f"{directory}: {len(missing)} of {len(shapes)} tensors are missing from {names}: {_quoted_few(missing)}"
    if len(missing) == len(shapes):
        return f"{text}; it has {_quoted_few(sorted(found))}, the tensors of another model or an adapter"
    if all(_LAYER.search(name) for name in missing):
        return f"{text}; config.json may be of a model with more layers, or a file of weights is incomplete"
    return f"{text}; a file of weights may be incomplete (download it again)"


def _quoted_few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(quoted, names[:3])) + more


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory. No other file of weights is ever opened: others may run code when read."""
    if _is_regular(directory / INDEX_NAME):
        weight_map = _read_json(directory / INDEX_NAME, _MAX_INDEX_BYTES, "index of weights").get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) for name in weight_map.values())
        ):
            raise SpecError(f"{directory / INDEX_NAME}: has no weight_map from tensor names to file names")
        names = sorted(set(weight_map.values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise SpecError(f"{directory / INDEX_NAME}: {quoted(outside[0])} points outside the directory")
        if others := [name for name in names if not name.endswith(".safetensors")]:
            raise SpecError(f"{directory / INDEX_NAME}: {quoted(others[0])} is not a safetensors file's name")
    elif _is_regular(directory / SINGLE_NAME):
        names = [SINGLE_NAME]
    else:
        pickled = [name for name in _PICKLED_NAMES if (directory / name).exists()]
        hint = f"; {pickled[0]} is pickled and never loaded, convert it to safetensors" if pickled else ""
        if not hint and (what := describe_directory(directory)) is not None:
            hint = f"; this is {what}"
        raise SpecError(f"{directory}: no {SINGLE_NAME} or {INDEX_NAME}{hint}")
    if missing := [name for name in names if not _is_regular(directory / name)]:
        raise SpecError(f"{directory}: {_listed(missing)} named in {INDEX_NAME} but not there")
    return [directory / name for name in names]


def _is_regular(path: Path) -> bool:
    """Whether there is such a file; SpecError if there is one that is not to be read."""
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{path.parent}/{shorten(path.name)}: cannot be read ({reason})") from error
    if not stat.S_ISREG(state.st_mode):
        raise SpecError(f"{path}: cannot be read (is {kind(state)}, not a regular file)")
    return True


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shorten, names[:3])) + more


def _read_json(path: Path, max_bytes: int, what: str) -> dict[str, Any]:
    try:
        value = parse_json(read_whole(path, max_bytes, what), allow_nan=True)
    except SpecError:
        raise
    except ValueError as error:
        raise SpecError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(f"{path}: must hold a JSON object")
    return value
