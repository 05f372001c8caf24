"""Reads untrusted safetensors files: headers must agree with the file's size, and all weights must be finite.

Format: 8 bytes little-endian header length, JSON header, data (huggingface/safetensors, README "Format").
"""

import json
import logging
import math
from collections.abc import Iterable
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from gpt_parallel.base.errors import SpecError, quoted
from gpt_parallel.base.escaping import plain
from gpt_parallel.base.untrusted_files import parse_json

# Number types of weights that can be run, and the other types that a file may contain.
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_ALL_ITEM_BYTES = {
    **ITEM_BYTES,
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1},
    **{"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8},
}
_MAX_HEADER_BYTES = 32 << 20  # a GPT-2 of 10,000 layers has 15 MiB
_MAX_DIMENSIONS = 8
# The exponent bits, which are all set only in NaN and infinities (IEEE 754; bfloat16 is float32's upper half).
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


_CHUNK_BYTES = 256 << 10  # stays in a core's cache


_logger = logging.getLogger("gpt_parallel")


class StoredTensor(NamedTuple):
    """A tensor in a file, from its byte `start` up to `stop`."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Read a file's tensors by name. Raises SpecError unless they are well-formed and cover the data exactly."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > size - 8:
                raise SpecError(f"{path}: truncated or not a safetensors file (header of {length} bytes in {size})")
            if length > _MAX_HEADER_BYTES:
                raise SpecError(f"{path}: header of {length} bytes; allowed: at most {_MAX_HEADER_BYTES}")
            raw = stream.read(length)
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        header = parse_json(raw)
        if b"\\u" in raw:  # half of a surrogate pair, which only Python accepts
            json.dumps(header, ensure_ascii=False).encode()
    except ValueError as error:
        raise SpecError(f"{path}: the safetensors header cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise SpecError(f"{path}: the safetensors header is not an object")
    if not _are_texts(header.pop("__metadata__", {})):
        raise SpecError(f"{path}: the safetensors header's __metadata__ must map names to texts")
    data_bytes = size - 8 - length
    tensors = {name: _tensor(path, name, entry, 8 + length, data_bytes) for name, entry in header.items()}
    _check_covered(path, tensors, 8 + length, size)
    return tensors


def _tensor(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    where = f"{path}: tensor {quoted(name)}"
    if not (isinstance(entry, dict) and isinstance(entry.get("dtype"), str)):
        raise SpecError(f"{where} has a malformed header entry")
    dtype, shape, offsets = entry["dtype"], entry.get("shape"), entry.get("data_offsets")
    if not (_are_sizes(shape) and len(shape) <= _MAX_DIMENSIONS and _are_sizes(offsets) and len(offsets) == 2):
        raise SpecError(f"{where} has a malformed header entry: shape {quoted(shape)}, data_offsets {quoted(offsets)}")
    if dtype not in _ALL_ITEM_BYTES:
        raise SpecError(f"{where} has dtype {quoted(dtype)}; allowed: {', '.join(_ALL_ITEM_BYTES)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ALL_ITEM_BYTES[dtype]:
        raise SpecError(f"{where} has offsets {begin}–{end} that do not fit its shape {shape}")
    if end > data_bytes:
        raise SpecError(
            f"{path}: truncated; tensor {quoted(name)} ends at byte {end} of {data_bytes} (download it again)"
        )
    return StoredTensor(path, name, dtype, tuple(shape), data_start + begin, data_start + end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of non-negative 64-bit integers. True is an int in Python, but not a size."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _check_covered(path: Path, tensors: dict[str, StoredTensor], data_start: int, size: int) -> None:
    """Check that every byte of the data belongs to exactly one tensor, as the format requires."""
    covered = data_start
    for start, stop in sorted((tensor.start, tensor.stop) for tensor in tensors.values()):
        if start != covered:
            at = min(start, covered) - data_start
            raise SpecError(f"{path}: tensors overlap or leave a gap at byte {at} (download it again)")
        covered = stop
    if covered != size:
        raise SpecError(f"{path}: {size - covered} bytes after the last tensor belong to none (download it again)")


def check_finite(path: Path, tensors: Iterable[StoredTensor]) -> None:
    """Raise SpecError naming the first tensor with a NaN or infinity. An unchanged file is not read again."""
    state = path.stat()
    in_order = tuple(sorted(tensors, key=lambda tensor: tensor.start))
    bad = _first_not_finite(path, (state.st_size, state.st_mtime_ns, state.st_ino), in_order)
    if bad is not None:
        raise SpecError(f"{path}: tensor {bad!r} holds NaN or infinite weights; the output would be meaningless")


@lru_cache(maxsize=64)
def _first_not_finite(path: Path, state: tuple[int, int, int], tensors: tuple[StoredTensor, ...]) -> str | None:
    _logger.info("%s: checking %.2f GB of weights for NaN and infinity", plain(path), state[0] / 1e9)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb") as stream:
        return next((tensor.name for tensor in tensors if not _is_finite(stream, tensor, buffer)), None)


def _is_finite(stream: BufferedReader, tensor: StoredTensor, buffer: memoryview) -> bool:
    import numpy as np

    kind, exponent = _EXPONENTS[tensor.dtype]
    mask = np.array(exponent, kind)
    stream.seek(tensor.start)
    for start in range(tensor.start, tensor.stop, len(buffer)):
        chunk = buffer[: tensor.stop - start]
        if stream.readinto(chunk) < len(chunk):
            raise SpecError(f"{stream.name}: became shorter while it was read")
        if (np.frombuffer(chunk, kind) & mask).max() == mask:
            return False
    return True
