"""Looks at every stored weight once: a NaN or an infinity would poison all tokens, hours later and without a name."""

import logging
from collections.abc import Iterable
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from gpt_parallel.base.errors import SpecError
from gpt_parallel.base.escaping import plain

# The number type's bits that are all set in NaN and infinities alone (IEEE 754; bfloat16 is float32's upper half).
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
_CHUNK_BYTES = 256 << 10  # stays in a core's cache
_logger = logging.getLogger("gpt_parallel")


class Span(NamedTuple):
    """Where a tensor's bytes are in its file."""

    tensor: str
    dtype: str
    start: int
    stop: int


def check_finite(path: Path, spans: Iterable[Span]) -> None:
    """Raise SpecError naming the first tensor with a NaN or infinity. A file that has not changed is not read again."""
    state = path.stat()
    in_order = tuple(sorted(spans, key=lambda span: span.start))
    bad = _first_not_finite(path, (state.st_size, state.st_mtime_ns, state.st_ino), in_order)
    if bad is not None:
        raise SpecError(
            f"{path}: tensor {bad!r} holds NaN or infinite weights; no output of this model would mean a thing"
        )


@lru_cache(maxsize=64)
def _first_not_finite(path: Path, state: tuple[int, int, int], spans: tuple[Span, ...]) -> str | None:
    _logger.info("%s: looking for weights that are not finite, in %.2f GB", plain(path), state[0] / 1e9)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb") as stream:
        return next((span.tensor for span in spans if not _is_finite(stream, span, buffer)), None)


def _is_finite(stream: BufferedReader, span: Span, buffer: memoryview) -> bool:
    import numpy as np

    kind, exponent = _EXPONENTS[span.dtype]
    mask = np.array(exponent, kind)
    stream.seek(span.start)
    for start in range(span.start, span.stop, len(buffer)):
        chunk = buffer[: span.stop - start]
        if stream.readinto(chunk) < len(chunk):
            raise SpecError(f"{stream.name}: became shorter while it was read")
        if (np.frombuffer(chunk, kind) & mask).max() == mask:
            return False
    return True
