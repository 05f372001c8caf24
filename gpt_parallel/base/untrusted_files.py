"""Reads untrusted files: regular files of bounded size, and JSON that has only one meaning."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt_parallel.base.errors import SpecError, quoted

MAX_DEPTH = 64  # levels of lists and objects; this package's documents have fewer than ten
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


def read_whole(path: Path, max_bytes: int, what: str) -> bytes:
    """Read a file. Raises SpecError if it is not a regular file, whose reading might never end, or is too large."""
    problem = f"{what} {path}: larger than {_size(max_bytes)}, the most allowed"
    try:
        with open(path, "rb", opener=_open) as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                problem = f"{what} {path}: cannot be read (is {kind(state)}, not a regular file)"
            elif state.st_size <= max_bytes and len(content := stream.read(max_bytes + 1)) <= max_bytes:
                return content
    except OSError as error:
        problem = f"{what} {path}: cannot be read ({error.strerror})"
    except ValueError as error:  # a name that no file can have
        problem = f"{what} {quoted(str(path))}: cannot be read ({error})"
    raise SpecError(problem)


def _open(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def kind(state: os.stat_result) -> str:
    """The kind of a file that is not regular."""
    return _KINDS.get(stat.S_IFMT(state.st_mode), "a device")


def parse_json(raw: bytes, *, allow_nan: bool = False) -> Any:
    """Parse a JSON text in UTF-8. Raises ValueError with the reason if it is not valid.

    Stricter than `json.loads`, which takes the last of several equal keys and guesses encodings. `allow_nan` accepts
    NaN and infinities, which are not JSON but which Python writes.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=None if allow_nan else _refuse_constant
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 at byte {error.start + 1}") from error
    except RecursionError as error:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON, perhaps truncated ({error})") from error
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {quoted(repeated)}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node) if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def _size(num_bytes: int) -> str:
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if num_bytes >= 1 << shift:
            return f"{num_bytes >> shift} {unit}"
    return f"{num_bytes} bytes"
